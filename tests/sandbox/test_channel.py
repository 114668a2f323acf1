"""A frame comes whole, within its bound and before its deadline, or not at all."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from sandbox import channel

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def receive(sock: socket.socket, bound: int = 1000, fds: int = 4, seconds: float = 1.0):
    until = channel.Wait(sock, time.monotonic() + seconds)
    return channel.receive_until(sock, bound, fds, until)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def send_fds(sock: socket.socket, data: bytes, count: int) -> None:
    fds = array.array("i", [sock.fileno()] * count)
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def header(length: int, kind: int = 3) -> bytes:
    return struct.pack("<QB", length, kind)


def test_a_frame_comes_as_it_was_sent(pair: Pair) -> None:
    ours, theirs = pair
    channel.send(theirs, 7, b"body", [0])
    kind, body, fds = receive(ours)
    assert (kind, body, len(fds)) == (7, b"body", 1)
    assert not os.get_inheritable(fds[0])
    channel.close_all(fds)


def test_a_large_frame_goes_both_ways(pair: Pair) -> None:
    ours, theirs = pair
    body = os.urandom(5_000_000)
    got = []
    thread = threading.Thread(target=lambda: got.append(channel.receive(theirs)))
    thread.start()
    channel.send_until(ours, 2, body, [0], channel.Wait(ours, time.monotonic() + 5))
    thread.join()
    kind, received, fds = got[0]
    assert (kind, received == body, len(fds)) == (2, True, 1)
    channel.close_all(fds)
    thread = threading.Thread(target=lambda: channel.send(theirs, 3, body))
    thread.start()
    assert receive(ours, len(body), seconds=5)[1] == body
    thread.join()


@pytest.mark.parametrize("length", [1001, 2**31, 2**63, 2**64 - 1])
def test_a_length_over_the_bound_is_refused(pair: Pair, length: int) -> None:
    ours, theirs = pair
    theirs.sendall(header(length))
    with pytest.raises(channel.FrameTooLarge):
        receive(ours)


def test_a_frame_that_ends_early_is_an_end_of_file(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(header(10) + b"half")
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)


@pytest.mark.parametrize("data", [b"", b"\0", header(10), header(10) + b"123456789"])
def test_a_wait_ends_at_the_deadline(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        receive(ours, seconds=0.2)
    assert 0.2 <= time.monotonic() - start < 0.5


def test_a_full_socket_ends_at_the_deadline(pair: Pair) -> None:
    ours, _ = pair
    until = channel.Wait(ours, time.monotonic() + 0.2)
    with pytest.raises(TimeoutError):
        channel.send_until(ours, 2, b"x" * 10_000_000, [], until)


@pytest.mark.parametrize("count", [5, 6, 100, 253])
def test_more_descriptors_than_allowed_are_closed(pair: Pair, count: int) -> None:
    ours, theirs = pair
    before = open_fds()
    send_fds(theirs, header(0), count)
    with pytest.raises(channel.FrameError):
        receive(ours)
    assert open_fds() == before


def test_descriptors_of_many_messages_are_counted_together(pair: Pair) -> None:
    ours, theirs = pair
    before = open_fds()
    send_fds(theirs, header(100), 3)
    send_fds(theirs, b"x", 3)
    with pytest.raises(channel.FrameError):
        receive(ours)
    assert open_fds() == before


def test_descriptors_of_a_frame_that_fails_are_closed(pair: Pair) -> None:
    ours, theirs = pair
    before = open_fds()
    send_fds(theirs, header(100) + b"part", 2)
    with pytest.raises(TimeoutError):
        receive(ours, seconds=0.1)
    assert open_fds() == before


def test_what_follows_a_frame_is_left_alone(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(header(5) + b"first" + header(6) + b"second")
    assert receive(ours)[1] == b"first"


def test_the_tick_is_called_also_while_a_peer_drips(pair: Pair) -> None:
    ours, theirs = pair
    ticks: list[int] = []
    until = channel.Wait(ours, time.monotonic() + 0.3, lambda: ticks.append(1), interval=0.05)
    theirs.send(header(1_000_000))

    def drip() -> None:
        while time.monotonic() < until.deadline:
            theirs.send(b"x")
            time.sleep(0.005)

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(TimeoutError):
        channel.receive_until(ours, 2_000_000, 0, until)
    thread.join()
    assert len(ticks) >= 3


def test_the_tick_is_called_while_waiting(pair: Pair) -> None:
    ours, _ = pair
    ticks: list[int] = []
    until = channel.Wait(ours, time.monotonic() + 0.3, lambda: ticks.append(1), interval=0.05)
    with pytest.raises(TimeoutError):
        until.readable()
    assert 3 <= len(ticks) <= 6
