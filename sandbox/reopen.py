"""Open a file again, through a read-only mount of its own.

A descriptor that cannot write still lets its holder change the file's mode, times and attributes
where the holder is the file's owner to the kernel, as a worker of an unprivileged caller is. On a
read-only mount those are refused too (EROFS).

The mount is made by the opener, a small process in a mount namespace of its own. It follows the
host's mounts (MS_SLAVE), copies the mount of one file at a time, and reads none of it. The way of a
request: parent, zygote, opener; the answer goes to the parent directly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time

from multiprocess.connection import wait

from sandbox import channel, companions, forks, kernel
from sandbox.layers import ROOT
from sandbox.processes import Zygote, ZygoteGone

_MESSAGE = 16384  # bytes: a path has 4095 at most, and a refusal names it
_ATTRIBUTES = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
)


# In the parent


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
    if not wait([sock], max(0.0, deadline - time.monotonic())):
        raise TimeoutError("a file was not opened again in time")
    with forks.creating:
        message, fds = channel.receive_message(sock, _MESSAGE, 1)
    if fds:
        return fds[0]
    if not message:
        raise ZygoteGone("it opened no file")
    raise OSError(errno.EROFS, f"the file has no read-only mount here: {message.decode()}")


def _check_same(fd: int, again: int, path: str) -> None:
    ours, theirs = os.fstat(fd), os.fstat(again)
    if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
        raise OSError(errno.ESTALE, "another file lies at its path by now", path)
    if not os.fstatvfs(again).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "the copy of its mount is not read-only", path)


# In the zygote


class Opener:
    """The zygote's handle on its opener; where none can be had it says why, each time."""

    def __init__(self, caller: str) -> None:
        self._refusal = ""
        flags = kernel.CLONE_NEWNS | (0 if caller == ROOT else kernel.CLONE_NEWUSER)
        try:
            self._sock = companions.start(_live, flags)
        except OSError as error:
            self._refusal = str(error)

    def forward(self, path: str, reply: int) -> None:
        """Have the file at `path` opened again, and the descriptor sent to `reply`."""
        refusal = self._refusal
        if not refusal:
            try:
                socket.send_fds(self._sock, [os.fsencode(path)], [reply])
                return
            except OSError as error:  # EPIPE; ECONNRESET after a death with a request unread
                refusal = f"the opener takes no request: {error.strerror}"
        with contextlib.suppress(OSError):  # the parent waits no more
            os.write(reply, refusal.encode())


# In the opener


def _live(zygote: socket.socket) -> None:
    kernel.mounts_follow()
    while True:
        path, fds = channel.receive_message(zygote, _MESSAGE, 1)
        if not path:
            return
        with socket.socket(fileno=fds[0]) as reply, contextlib.suppress(OSError):
            _send(reply, os.fsdecode(path))


def _send(reply: socket.socket, path: str) -> None:
    try:
        fd = _open(path)
    except OSError as error:
        reply.send(str(error).encode("utf-8", "replace"))
        return
    try:
        socket.send_fds(reply, [b"\0"], [fd])
    finally:
        os.close(fd)


def _open(path: str) -> int:
    tree = kernel.clone_tree(path)
    try:
        kernel.mount_setattr(tree, _ATTRIBUTES)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return os.open(f"/proc/self/fd/{tree}", flags)
    finally:
        os.close(tree)
