"""Against what is shared with the parent: descriptions of open files, and segments."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
import time

from tests.attacks.entries.native import attempt, libc, open_descriptors, say, syscall

F_SETLEASE, F_ADD_SEALS, F_SET_RW_HINT = 1024, 1033, 1036
SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE = 1, 2, 4, 8, 16
SIZE = 1 << 16


def spoil(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Change the given files: bytes, size, mode, owner, times, flags, position, locks."""
    del request
    results = {}
    for fd in fds:
        size = os.fstat(fd).st_size
        for name, call, *arguments in (
            ("pwrite", os.pwrite, fd, b"ATTACK", 0),
            ("write", os.write, fd, b"ATTACK"),
            ("ftruncate", os.ftruncate, fd, 0),
            ("grow", os.ftruncate, fd, size + 4096),
            ("fallocate", os.posix_fallocate, fd, 0, size + 4096),
            ("punch", _punch, fd),
            ("map shared", mmap.mmap, fd, size, mmap.MAP_SHARED),
            ("splice", _splice, fd),
            ("unseal", fcntl.fcntl, fd, F_ADD_SEALS, 0),
            ("lease", fcntl.fcntl, fd, F_SETLEASE, fcntl.F_WRLCK),
            ("hint", fcntl.fcntl, fd, F_SET_RW_HINT, struct.pack("Q", 5)),
            ("flags", fcntl.fcntl, fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME),
            ("seek", os.lseek, fd, 3, os.SEEK_SET),
            ("lock", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
            ("chmod", os.fchmod, fd, 0o6777),
            ("chown", os.fchown, fd, 0, 0),
            ("times", os.utime, fd, (1, 1)),
            ("attribute", _set_attribute, fd),
            ("reopen", os.open, f"/proc/self/fd/{fd}", os.O_RDWR),
            ("reopen by dev", os.open, f"/dev/fd/{fd}", os.O_RDWR),
            ("link", _link, fd),
            ("immutable", fcntl.ioctl, fd, 0x40086602, struct.pack("Q", 0x10)),
        ):
            results[f"{name}({fd})"] = attempt(call, *arguments)  # type: ignore[arg-type]  # mixed
    return say(results)


def _punch(fd: int) -> None:
    if libc.fallocate(fd, 3, ctypes_long(0), ctypes_long(4096)):
        raise OSError(1, "fallocate")


def ctypes_long(value: int) -> object:
    import ctypes  # noqa: PLC0415 - one use

    return ctypes.c_long(value)


def _splice(fd: int) -> None:
    read, write = os.pipe()
    os.write(write, b"ATTACK")
    os.splice(read, fd, 6, offset_dst=0)


def _set_attribute(fd: int) -> None:
    syscall("fsetxattr", fd, b"user.isoload", b"ATTACK", 6, 0)


def _link(fd: int) -> None:
    if libc.linkat(fd, b"", -100, b"/tmp/link", 0x1000):
        raise OSError(1, "linkat")


def _memfd(seals: int, data: bytes = b"\x01" * SIZE) -> int:
    fd = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def segment(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """A segment of the kind that the request names, as the only descriptor of the reply."""
    return request, [SEGMENTS[request.decode()](fds)]


def _future_write(_: list[int]) -> int:
    """Sealed against new writers only: an old mapping still writes."""
    fd = _memfd(0)
    area = mmap.mmap(fd, SIZE)
    fcntl.fcntl(fd, F_ADD_SEALS, SEAL | SHRINK | GROW | FUTURE_WRITE)

    def change() -> None:
        value = 0
        while True:
            value = (value + 1) % 256
            area[:] = bytes([value]) * SIZE

    if os.fork() == 0:
        change()
    threading.Thread(target=change, daemon=True).start()
    return fd


def _shrinking(_: list[int]) -> int:
    fd = _memfd(SEAL | GROW)

    def change() -> None:
        while True:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 1)

    threading.Thread(target=change, daemon=True).start()
    return fd


def _sealed_under_a_mapping(_: list[int]) -> int:
    """Seal while a read-only shared mapping lives, then make that writable."""
    fd = _memfd(0)
    area = libc.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
    libc.mprotect(area, SIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    return fd


def _sparse(_: list[int]) -> int:
    fd = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 256 << 20)
    fcntl.fcntl(fd, F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
    return fd


def _endless(_: list[int]) -> int:
    """As large as the limit on a file's size lets it be."""
    fd = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    size = 1 << 62
    while size:
        try:
            os.ftruncate(fd, size)
            break
        except OSError:
            size >>= 1
    fcntl.fcntl(fd, F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
    return fd


def _fifo(_: list[int]) -> int:
    os.mkfifo("/tmp/fifo")
    return os.open("/tmp/fifo", os.O_RDWR)


def _regular(_: list[int]) -> int:
    fd = os.open("/tmp/regular", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"\x01" * SIZE)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
    return fd


def _huge(_: list[int]) -> int:
    """A memory file on huge pages, where there are any; else an ordinary unsealed one."""
    with contextlib.suppress(OSError):
        fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 2 << 20)
        fcntl.fcntl(fd, F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
        return fd
    return _memfd(0)


def _channel(_: list[int]) -> int:
    return next(fd for fd, status in open_descriptors().items() if status["kind"] == 0o140000)


SEGMENTS = {
    "sealed": lambda _: _memfd(SEAL | SHRINK | GROW | WRITE),
    "unsealed": lambda _: _memfd(0),
    "no seal on seals": lambda _: _memfd(SHRINK | GROW | WRITE),
    "no shrink seal": lambda _: _memfd(SEAL | GROW | WRITE),
    "no grow seal": lambda _: _memfd(SEAL | SHRINK | WRITE),
    "no write seal": lambda _: _memfd(SEAL | SHRINK | GROW),
    "future write": _future_write,
    "shrinking": _shrinking,
    "sealed under a mapping": _sealed_under_a_mapping,
    "sparse": _sparse,
    "endless": _endless,
    "fifo": _fifo,
    "pipe": lambda _: os.pipe()[0],
    "path": lambda _: os.open("/tmp", os.O_PATH),
    "directory": lambda _: os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY),
    "socket": lambda _: socket.socketpair()[0].detach(),
    "listener": lambda _: _listener(),
    "channel": _channel,
    "null": lambda _: os.open("/dev/null", os.O_RDWR),
    "zero": lambda _: os.open("/dev/zero", os.O_RDWR),
    "regular": _regular,
    "program": lambda _: os.open("/python", os.O_RDONLY),
    "huge": _huge,
    "event": lambda _: os.eventfd(0),
    "pidfd": lambda _: os.pidfd_open(os.getpid()),
    "write only": lambda _: _write_only(),
    "empty": lambda _: _memfd(SEAL | SHRINK | GROW | WRITE, b""),
}


def _listener() -> int:
    server = socket.socket(socket.AF_UNIX)
    server.bind(b"\0isoload-attack")
    server.listen(1)
    return server.detach()


def _write_only() -> int:
    fd = os.open("/tmp/write-only", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x" * SIZE)
    return fd


def linger(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """A sealed segment; and children that keep all that they were given."""
    fd = _memfd(SEAL | SHRINK | GROW | WRITE)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            while True:
                for given in (*fds, fd):
                    attempt(os.pwrite, given, b"ATTACK", 0)
                    attempt(os.ftruncate, given, 0)
                time.sleep(0.001)
    return request, [fd]
