"""Against the channel: anything is written to it, or nothing, or far too much."""

from __future__ import annotations

import array
import contextlib
import os
import random
import signal
import socket
import struct
import sys
import time

from tests.attacks.entries.native import sockets


def _channel() -> socket.socket:
    return socket.socket(fileno=os.dup(sockets()[0]))


def _send(data: bytes) -> None:
    with _channel() as channel, contextlib.suppress(OSError):
        channel.setblocking(True)
        channel.sendall(data)


def garbage(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Write the request as it is, and end."""
    del fds
    _send(request)
    os._exit(0)


def garbage_and_reply(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Write the request as it is, then send an honest reply."""
    del fds
    _send(request)
    return b"honest", []


def lengths(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """A length without its bytes, in each width and byte order, then silence."""
    del fds
    value, form = request.split()
    _send(struct.pack(form.decode(), int(value)) + b"x")
    time.sleep(3600)
    return b"", []


def flood(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Bytes without end."""
    del fds
    with _channel() as channel:
        channel.setblocking(True)
        while True:
            channel.sendall(request * 65536)


def large_reply(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """A reply of as many bytes as the request says, in the channel's own form."""
    del fds
    return b"\0" * int(request), []


def two_replies(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Send what an honest reply would be, twice: by a second process that holds the channel."""
    del fds
    if os.fork() == 0:
        return b"second", []
    return request, []


def descriptors(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Messages with as many descriptors as one can carry (SCM_MAX_FD), again and again."""
    del fds
    count = int(request)
    null = os.open("/dev/null", os.O_RDONLY)
    rights = array.array("i", [null] * min(count, 253))
    with _channel() as channel:
        channel.setblocking(True)
        for _ in range(-(-count // 253)):
            with contextlib.suppress(OSError):
                channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    return b"", []


def many_in_reply(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """A reply with more descriptors than anybody asked for."""
    del fds
    return b"", [os.open("/dev/null", os.O_RDONLY)] * int(request)


def slow(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """A byte now and then, for ever."""
    del fds
    with _channel() as channel:
        while True:
            with contextlib.suppress(OSError):
                channel.send(request)
            time.sleep(0.05)


def close_all(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Shut the channel and live on."""
    del request, fds
    with _channel() as channel:
        channel.shutdown(socket.SHUT_RDWR)
    for fd in sockets():
        os.close(fd)
    time.sleep(3600)
    return b"", []


def end(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Exit with the status that the request says, without a reply."""
    del fds
    os._exit(int(request))


def die(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Die by the signal that the request says, or by a stack that has no end."""
    del fds
    number = int(request)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    sys.setrecursionlimit(1 << 30)
    return _fall(0), []


def _fall(depth: int) -> bytes:
    return _fall(depth + 1)


def reply_then_crash(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """An honest reply, and a crash at a random moment before, during or after it."""
    if os.fork() == 0:
        time.sleep(random.random() / 100)
        os.kill(1, signal.SIGKILL)
        os._exit(0)
    return request, fds


def quit_at_random(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """End at a random moment."""
    time.sleep(random.random() * float(request))
    os._exit(random.choice([0, 1, 137]))
    return b"", fds
