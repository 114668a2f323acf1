"""Framed bytes and descriptors over a stream socketpair, with a bound and a deadline.

A frame is a little-endian length, a kind byte, and the body; its descriptors travel with its first
byte. The receiving side trusts no number in it: the length is checked before a byte is stored,
memory grows only with what really came, surplus descriptors are closed, truncation is refused, and
every wait ends at one absolute instant of CLOCK_MONOTONIC. Nothing is unpickled here.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence

from multiprocess.connection import wait

# Kinds of frame: what a worker says, and the one thing that it is asked.
READY = 1
REQUEST = 2
REPLY = 3
FAILED = 4  # the entry raised: "limit" or "" and a NUL, then words for people
REFUSED = 5  # not even called
JOIN = 6  # to a worker, before all else: the cgroup.procs files that it is to join by

_HEADER = struct.Struct("<QB")
_CHUNK = 1 << 18
_FD = array.array("i").itemsize
_MAX_FDS = 253  # SCM_MAX_FD: what one message can carry; unix(7)

Alive = Callable[[float], None]  # waits at most so many seconds, or raises


class FrameError(Exception):
    """What came is not a frame of this protocol."""


class FrameTooLarge(FrameError):
    """The frame's length is over the bound."""


def send(sock: socket.socket, kind: int, body: bytes, fds: Sequence[int] = ()) -> None:
    """Send on a blocking socket: the worker's side."""
    data = memoryview(_HEADER.pack(len(body), kind))
    sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
    sock.sendall(data[sent:])
    sock.sendall(body)


def receive(sock: socket.socket) -> tuple[int, bytes, list[int]]:
    """Receive on a blocking socket: the worker's side, from the parent, whom it trusts."""
    sock.setblocking(True)
    head, fds = bytearray(), list[int]()
    while len(head) < _HEADER.size:
        _receive_into(sock, head, _HEADER.size - len(head), fds, _MAX_FDS)
    length, kind = _HEADER.unpack(head)
    body = bytearray()
    while len(body) < length:
        _receive_into(sock, body, length - len(body), fds, _MAX_FDS)
    return kind, bytes(body), fds


class Wait:
    """Waits for one socket until a deadline, and looks after other things meanwhile.

    `tick` is called every `interval` seconds, also while a peer drips bytes.
    """

    def __init__(
        self,
        sock: socket.socket,
        deadline: float,
        tick: Callable[[], None] = lambda: None,
        interval: float = 0.1,
    ) -> None:
        self.sock = sock
        self.deadline = deadline
        self._tick = tick
        self._interval = interval
        self._next = time.monotonic() + interval

    def readable(self) -> None:
        """Returns when there is something to read; TimeoutError at the deadline."""
        while True:
            ready = wait([self.sock], self._remaining())
            if time.monotonic() >= self._next:
                self._tick()
                self._next = time.monotonic() + self._interval
            if ready:
                return

    def writable(self) -> None:
        """Returns when the peer may have taken something; TimeoutError at the deadline."""
        time.sleep(min(0.0005, self._remaining()))

    def _remaining(self) -> float:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return min(remaining, self._interval)


def send_until(
    sock: socket.socket, kind: int, body: bytes, fds: Sequence[int], until: Wait
) -> None:
    """Send on a non-blocking socket: the parent's side. TimeoutError at the deadline."""
    header = _HEADER.pack(len(body), kind)
    views = [memoryview(header), memoryview(body)]
    pending = list(fds)
    while views:
        try:
            sent = socket.send_fds(sock, views, pending) if pending else sock.sendmsg(views)
        except BlockingIOError:
            until.writable()
            continue
        pending = []
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if views:
            views[0] = views[0][sent:]


def receive_until(
    sock: socket.socket, bound: int, max_fds: int, until: Wait
) -> tuple[int, bytes, list[int]]:
    """Receive one frame of at most `bound` bytes and `max_fds` descriptors on a non-blocking
    socket: the parent's side, from a worker that may be hostile.

    The caller owns the descriptors. Raises FrameError, FrameTooLarge, EOFError, TimeoutError and
    OSError, and then every descriptor that came has been closed.
    """
    fds: list[int] = []
    try:
        head = bytearray()
        while len(head) < _HEADER.size:
            until.readable()
            _receive_into(sock, head, _HEADER.size - len(head), fds, max_fds)
        length, kind = _HEADER.unpack(head)
        if length > bound:
            raise FrameTooLarge(f"a frame of {length} bytes where {bound} are allowed")
        body = bytearray()
        while len(body) < length:
            until.readable()
            _receive_into(sock, body, min(_CHUNK, length - len(body)), fds, max_fds)
        return kind, bytes(body), fds
    except BaseException:
        close_all(fds)
        raise


def receive_fds(sock: socket.socket, count: int) -> list[int]:
    """Exactly `count` descriptors with one byte: between the parent and its own zygote."""
    byte, fds = bytearray(), list[int]()
    _receive_into(sock, byte, 1, fds, count)
    if len(fds) != count:
        close_all(fds)
        raise FrameError(f"{len(fds)} descriptors where {count} were announced")
    return fds


def receive_message(sock: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int]]:
    """One message of a SOCK_SEQPACKET, of trusted senders: b"" at the end. socket.recv_fds does not
    close its descriptors on exec."""
    message, fds = bytearray(), list[int]()
    with contextlib.suppress(EOFError):
        _receive_into(sock, message, size, fds, max_fds)
    return bytes(message), fds


def close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _receive_into(
    sock: socket.socket, buffer: bytearray, size: int, fds: list[int], max_fds: int
) -> None:
    """Append what one recvmsg(2) gives to `buffer` and `fds`. EOFError at the end."""
    room = socket.CMSG_SPACE((max_fds + 1) * _FD)  # one more, so that a surplus one is seen
    flags = socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, returned, _ = sock.recvmsg(size, room, flags)
    except BlockingIOError:
        return
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(payload[: len(payload) - len(payload) % _FD])
            fds.extend(received)
    if returned & socket.MSG_CTRUNC or len(fds) > max_fds:
        surplus = fds[:]
        fds.clear()
        close_all(surplus)
        raise FrameError("more descriptors than are allowed")
    if not data:
        raise EOFError
    buffer += data
