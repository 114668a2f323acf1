"""Make this process's surroundings those of a poorer host, then say what a worker would get.

Run as a program with the name of one of HOSTS, or of several with a plus sign. Prints the Isolation
as JSON; with the word "run" after it, what a run with the default layers says instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import sys
from pathlib import Path

from sandbox import IsolationError, Sandbox, probe

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_PR_CAPBSET_DROP, _CAP_SYS_ADMIN = 24, 21
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000

# The calls that Docker's default profile refuses without CAP_SYS_ADMIN, by number on x86-64;
# those from 424 on are the same everywhere.
_OLD = {
    "x86_64": (272, 165, 166, 155, 250),  # unshare, mount, umount2, pivot_root, keyctl
    "aarch64": (97, 40, 39, 41, 219),
}
_CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine, 0)
_CLONE_NEW_ANY = 0x7E020000
_CLONE3, _ENOSYS = 435, 38
_REFUSED = (*_OLD.get(os.uname().machine, ()), 428, 429, 430, 431, 432, 433, 442)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def seccomp() -> None:
    """A filter that answers EPERM, as container runtimes install it. seccomp(2)"""
    load, equal, has, give = 0x20, 0x15, 0x45, 0x06
    program = struct.pack("=HBBI", load, 0, 0, 0)  # seccomp_data.nr
    for number in _REFUSED:
        program += struct.pack("=HBBI", equal, 0, 1, number)
        program += struct.pack("=HBBI", give, 0, 0, 0x00050000 | 1)  # SECCOMP_RET_ERRNO, EPERM
    program += struct.pack("=HBBI", equal, 0, 1, _CLONE3)
    program += struct.pack("=HBBI", give, 0, 0, 0x00050000 | _ENOSYS)
    program += struct.pack("=HBBI", equal, 0, 3, _CLONE)
    program += struct.pack("=HBBI", load, 0, 0, 16)  # the flags, its first argument
    program += struct.pack("=HBBI", has, 0, 1, _CLONE_NEW_ANY)
    program += struct.pack("=HBBI", give, 0, 0, 0x00050000 | 1)
    program += struct.pack("=HBBI", give, 0, 0, 0x7FFF0000)  # SECCOMP_RET_ALLOW
    code = ctypes.create_string_buffer(program)
    filter_ = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(code))
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0))


def container() -> None:
    """cgroupfs and /proc/sys read-only, parts of /proc masked: as in any container."""
    _own_mounts()
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split(" ")[4] for line in mounts]
    for point in points:
        if point.startswith("/sys/fs/cgroup"):
            _read_only(point)
    _checked(_libc.mount(b"/proc/sys", b"/proc/sys", None, _MS_BIND, None))
    _read_only("/proc/sys")
    for name in ("/proc/kcore", "/proc/keys", "/proc/timer_list"):
        with contextlib.suppress(OSError):
            _checked(_libc.mount(b"/dev/null", name.encode(), None, _MS_BIND, None))


def chroot() -> None:
    """A root of its own in init's mount namespace, as old build tools have it.

    With an init of our own, because a bind mount in the host's namespace would stay there.
    """
    _checked(_libc.unshare(_CLONE_NEWPID))
    _become_child()
    _own_mounts()
    _checked(_libc.mount(b"proc", b"/proc", b"proc", 0, None))
    entries = [entry for entry in os.scandir("/") if entry.name != "tmp"]
    covered = os.open("/tmp", os.O_PATH | os.O_DIRECTORY)  # a checkout may lie in it
    _checked(_libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
    os.mkdir("/tmp/tmp")
    source = f"/proc/self/fd/{covered}".encode()
    # Not recursive: the tmpfs that lies over it would come along.
    _checked(_libc.mount(source, b"/tmp/tmp", None, _MS_BIND, None))
    os.close(covered)
    for entry in entries:
        inside = f"/tmp/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry), inside)
        elif entry.is_dir():
            os.mkdir(inside)
            flags = _MS_BIND | _MS_REC
            _checked(_libc.mount(entry.path.encode(), inside.encode(), None, flags, None))
    _become_child()
    os.chroot("/tmp")
    os.chdir("/")


def demoted() -> None:
    """Root without CAP_SYS_ADMIN, as in a container, where user namespaces are allowed."""
    _own_mounts()
    for folder in reversed(Path(sys.base_prefix).parents):
        if not folder.stat().st_mode & 0o001:  # nobody could not reach Python: show it alone
            inside = Path(sys.base_prefix).relative_to(folder).parts[0]
            held = os.open(folder / inside, os.O_PATH | os.O_DIRECTORY)
            _checked(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"mode=0755"))
            (folder / inside).mkdir()
            source, target = f"/proc/self/fd/{held}".encode(), os.fsencode(folder / inside)
            _checked(_libc.mount(source, target, None, _MS_BIND | _MS_REC, None))
            os.close(held)
    _checked(_libc.prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, 0, 0, 0))  # for the zygote's exec


def _become_child() -> None:
    """Go on in a child; the parent ends as the child does."""
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _own_mounts() -> None:
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))


def _read_only(point: str) -> None:
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY
    _checked(_libc.mount(None, point.encode(), None, flags, None))


HOSTS = {"seccomp": seccomp, "container": container, "chroot": chroot, "demoted": demoted}


def main() -> None:
    for name in sys.argv[1].split("+"):
        HOSTS[name]()
    if sys.argv[2:] != ["run"]:
        print(json.dumps(probe().to_dict()))
        return
    with Sandbox() as sandbox:
        try:
            sandbox.run("sandbox.throwaway:answer", b"")
            print("it ran")
        except IsolationError as error:
            print(json.dumps([layer.name for layer in error.missing]), error)


main()
