"""Against the host's resources: memory by every road, processes, time, and not dying."""

from __future__ import annotations

import array
import contextlib
import ctypes
import mmap
import os
import resource
import signal
import socket
import threading
import time

from tests.attacks.entries.native import libc, say

MIB = 1 << 20


def heap(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """10 GiB of ordinary memory."""
    del request, fds
    held = []
    for _ in range(10 * 64):
        held.append(bytearray(os.urandom(1) * (16 * MIB)))
    return say(len(held))


def anonymous(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """10 GiB of shared anonymous mappings, in children as well."""
    del request, fds
    for _ in range(4):
        if os.fork() == 0:
            break
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    while True:
        area = libc.mmap(None, 16 * MIB, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if area in (None, 2**64 - 1):
            time.sleep(0.01)
            continue
        ctypes.memset(area, 1, 16 * MIB)


def memfds(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Memory files: by write, of which no rlimit on memory knows anything."""
    del request, fds
    chunk = b"x" * MIB
    while True:
        fd = _memfd_or_wait()
        with contextlib.suppress(OSError):
            while os.write(fd, chunk):
                pass


def memfds_in_flight(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Memory files that no process has open: they wait in sockets' queues."""
    del request, fds
    chunk = b"x" * MIB
    pairs = []
    while True:
        fd = _memfd_or_wait()
        with contextlib.suppress(OSError):
            for _ in range(64):
                os.write(fd, chunk)
        with contextlib.suppress(OSError):
            if len(pairs) < 8:
                pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        for left, _ in pairs:
            left.setblocking(False)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            with contextlib.suppress(OSError):
                left.sendmsg([b"x"], rights)
        os.close(fd)


def _memfd_or_wait() -> int:
    while True:
        with contextlib.suppress(OSError):
            return os.memfd_create("attack", 0)
        time.sleep(0.01)


def temporary_files(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Fill /tmp, and say how much went in."""
    del request, fds
    total = 0
    for number in range(10_000):
        try:
            with open(f"/tmp/{number}", "wb", buffering=0) as file:
                while written := file.write(b"x" * MIB):
                    total += written
        except OSError:
            if number > 100:
                break
    return say(total)


def pipe_memory(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Full pipes and socket queues, in as many processes as there may be."""
    del request, fds
    with contextlib.suppress(OSError):
        for _ in range(100):
            if os.fork() == 0:
                break
    held = []
    while True:
        try:
            ends = os.pipe()
            held.append(ends)
            with contextlib.suppress(OSError):
                libc.fcntl(ends[1], 1031, 1 << 20)
            os.set_blocking(ends[1], False)
            while os.write(ends[1], b"x" * 65536):
                pass
        except OSError:
            time.sleep(0.001)


def fork_bomb(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Forks that fork, in sessions of their own, ignoring every signal that can be ignored."""
    del request, fds
    for number in range(1, 32):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    while True:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                with contextlib.suppress(OSError):
                    os.setsid()


def daemons(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Leave daemons behind (double fork and setsid), and reply as if nothing were."""
    del fds
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            while True:
                signal.pause()
    return request, []


def threads(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Threads without end."""
    del request, fds
    count = 0
    try:
        while count < 10_000:
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    return say(count)


def spin(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """An endless loop."""
    del request, fds
    while True:
        pass


def spin_forked(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """CPU time by a chain of processes: each ends before its own limit is met."""
    del request, fds
    for number in (signal.SIGXCPU, signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        child = os.fork()
        if not child:
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            os._exit(0)
        os.waitpid(child, 0)


def will_not_die(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Ignore every signal, stop oneself, and never answer."""
    del request, fds
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ValueError):
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    for child in range(3):
        if os.fork() == 0 and child:
            os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(1)


def full_disk(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """One file over every bound: SIGXFSZ, if it is not ignored, or an error."""
    del request, fds
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with open("/tmp/disk", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * MIB)


def limits(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """The limits as the worker sees them."""
    del request, fds
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return say({name: resource.getrlimit(getattr(resource, name)) for name in names})


def hold(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Wait, so that the worker can be looked at from outside; a byte says that it does."""
    for fd in fds:
        os.write(fd, b"!")
    time.sleep(float(request or b"3600"))
    return b"held", []


def echo(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """An honest worker."""
    return request, fds
