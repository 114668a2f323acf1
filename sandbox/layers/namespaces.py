"""Layers "user" and "process": a user of no rights, alone with its own processes.

namespaces(7), user_namespaces(7), pid_namespaces(7). A user namespace gives an unprivileged caller
the right to all the others; a root caller has it and gets one only to shut the worker off from
root's. The worker is born in its pid namespace, and an unprivileged one in its user namespace too:
`CLONE_NEWPID` by unshare(2) would take one more fork.
"""

from __future__ import annotations

import contextlib
import errno
import os

from sandbox import kernel
from sandbox.layers import DEMOTED, NOBODY, ROOT, USER, Place

_LIMITED = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")


def at_birth(caller: str, disabled: frozenset[str]) -> int:
    """The namespaces that a worker is cloned into, as flags of clone(2)."""
    flags = 0 if "process" in disabled else kernel.CLONE_NEWPID
    if caller != ROOT and "user" not in disabled:
        flags |= kernel.CLONE_NEWUSER
    return flags


def user_for_unprivileged(place: Place) -> str:
    """Where the caller is not root, everything else follows from this."""
    if place.plan.caller == ROOT:
        return ""
    uid, gid = (NOBODY, NOBODY) if place.plan.caller == DEMOTED else place.plan.ids
    if not place.born_in & kernel.CLONE_NEWUSER:
        if place.plan.caller == DEMOTED:
            _become_nobody()
        _unshare_user()
    _map_user(place, uid, gid)
    if place.plan.caller == USER:
        return f"user namespace, uid {NOBODY} is the caller's {uid} outside"
    _become_nobody()  # the saved ids were still root's
    return f"user namespace, uid {NOBODY} inside and out"


def user_for_root(place: Place) -> str:
    """For root, who is uid 65534 by now: out of the namespace in which root is root."""
    if place.plan.caller != ROOT:
        return ""
    _unshare_user()
    _map_user(place, NOBODY, NOBODY)
    return "own user namespace"


def _become_nobody() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _unshare_user() -> None:
    kernel.unshare(kernel.CLONE_NEWUSER, "CLONE_NEWUSER")


def _map_user(place: Place, uid: int, gid: int) -> None:
    # The maps in /proc/self belong to root unless the process is dumpable. proc(5)
    kernel.prctl(kernel.PR_SET_DUMPABLE, "PR_SET_DUMPABLE, 1", 1)
    try:
        _write(place.plan.proc, "self/setgroups", "deny")
        _write(place.plan.proc, "self/gid_map", f"{NOBODY} {gid} 1")
        _write(place.plan.proc, "self/uid_map", f"{NOBODY} {uid} 1")
    finally:
        kernel.prctl(kernel.PR_SET_DUMPABLE, "PR_SET_DUMPABLE, 0", 0)


def mount(place: Place) -> str:
    kernel.unshare(kernel.CLONE_NEWNS, "CLONE_NEWNS")
    kernel.mount_private()
    return "mount namespace"


def network(place: Place) -> str:
    kernel.unshare(kernel.CLONE_NEWNET, "CLONE_NEWNET")
    return "network namespace"


def ipc(place: Place) -> str:
    kernel.unshare(kernel.CLONE_NEWIPC, "CLONE_NEWIPC")
    return "ipc namespace"


def uts(place: Place) -> str:
    kernel.unshare(kernel.CLONE_NEWUTS, "CLONE_NEWUTS")
    kernel.sethostname("sandbox")
    return "uts namespace"


def pid(place: Place) -> str:
    if not place.born_in & kernel.CLONE_NEWPID:
        kernel.unshare(kernel.CLONE_NEWPID, "CLONE_NEWPID")  # it says why it was not to be had
        raise kernel.refused("clone(CLONE_NEWPID)", errno.EAGAIN)
    return "pid namespace"


def join_cgroup(place: Place) -> str:
    """First act of the worker: all that it does from here is counted."""
    for fd in place.join:
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise kernel.refused("write(cgroup.procs)", error.errno or errno.EIO) from error
    return "cgroup" if place.join else ""


def cgroup(place: Place) -> str:
    kernel.unshare(kernel.CLONE_NEWCGROUP, "CLONE_NEWCGROUP")
    return "cgroup namespace"


def switch_off_nested(place: Place) -> str:
    """No namespace can be made in here: a nested user namespace would bring capabilities back.

    The counters are this user namespace's own (namespaces(7)): only write them inside a new one.
    """
    if place.plan.caller == ROOT and place.record["user"].step:
        raise kernel.refused("no own user namespace", errno.EPERM)
    for kind in _LIMITED:
        with contextlib.suppress(FileNotFoundError):  # a kernel without this kind
            _write(place.plan.proc, f"sys/user/max_{kind}_namespaces", "0")
    return "max_user_namespaces 0"


def prove_no_nested(place: Place) -> str:
    """By trying. Refused also where only the jail's chroot forbids it. user_namespaces(7)"""
    try:
        kernel.unshare(kernel.CLONE_NEWUSER, "CLONE_NEWUSER")
    except OSError:
        return "no nested user namespaces"
    raise kernel.refused("a nested user namespace could be made", 0)


def _write(proc: int, path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel.refused(f"write(/proc/{path})", error.errno or errno.EIO) from error
