"""Open a file again, through a read-only mount of its own.

A descriptor that cannot write still lets its holder change the file's mode, times and attributes
where the holder is the file's owner to the kernel, as a worker of an unprivileged caller is. On a
read-only mount those are refused too (EROFS). Only the mount of the one file is copied, so nothing
else of the host is held in use.

The zygote forks a child for it, which is trusted, lives for one file and reads none of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from typing import NoReturn

from multiprocess.connection import wait

from sandbox import channel, forks, kernel
from sandbox.layers import ROOT
from sandbox.processes import Zygote, ZygoteGone

_MESSAGE = 4096  # bytes
_ATTRIBUTES = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
)


def reopen(zygote: Zygote, fd: int, deadline: float) -> int:
    """A descriptor of the same regular file, read-only in every way. The caller owns it.

    Raises OSError where that cannot be had: the file has no path any more or another one lies
    there, the host has no namespaces; ZygoteGone; TimeoutError at the deadline.
    """
    path = os.readlink(f"/proc/self/fd/{fd}")
    with forks.creating:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            zygote.order({"kind": "reopen", "path": path}, [theirs.fileno()])
        again = _answer(ours, deadline)
    try:
        _check_same(fd, again, path)
    except BaseException:
        os.close(again)
        raise
    return again


def _answer(sock: socket.socket, deadline: float) -> int:
    """The descriptor that the child sends. The zygote's word of its birth comes before it."""
    while wait([sock], max(0.0, deadline - time.monotonic())):
        with forks.creating:
            message, fds = channel.receive_message(sock, _MESSAGE, 1)
        facts = json.loads(message or "{}")
        if "reopened" in facts:
            return fds[0]
        for pidfd in fds:
            os.close(pidfd)
        if "pid" not in facts:
            if not facts:
                raise ZygoteGone("it opened no file")
            refusal = facts.get("refused", "its child died")
            raise OSError(errno.EROFS, f"the file has no read-only mount here: {refusal}")
    raise TimeoutError("the zygote did not open a file again in time")


def _check_same(fd: int, again: int, path: str) -> None:
    ours, theirs = os.fstat(fd), os.fstat(again)
    if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
        raise OSError(errno.ESTALE, "another file lies at its path by now", path)
    if not os.fstatvfs(again).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "the copy of its mount is not read-only", path)


def namespaces(caller: str) -> int:
    """What the child is cloned into, as flags of clone(2)."""
    return kernel.CLONE_NEWNS | (0 if caller == ROOT else kernel.CLONE_NEWUSER)


def main(path: str, reply: socket.socket, proc: int) -> NoReturn:
    """In the zygote's child. `proc` is the host's /proc."""
    try:
        kernel.close_all_but({0, 1, 2, proc, reply.fileno()})
        fd, answer = -1, json.dumps({"reopened": True})
        try:
            kernel.mount_private()
            tree = kernel.clone_tree(path)
            kernel.mount_setattr(tree, _ATTRIBUTES)
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            fd = os.open(f"self/fd/{tree}", flags, dir_fd=proc)
        except OSError as error:
            answer = json.dumps({"refused": str(error)[: _MESSAGE // 2]})
        with contextlib.suppress(OSError):  # nobody waits for it any more
            socket.send_fds(reply, [answer.encode()], [fd] if fd >= 0 else [])
    finally:
        os._exit(0)
