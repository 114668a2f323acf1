"""Only a sealed, whole, bounded memfd is ever mapped."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile

import pytest

from sandbox import WorkerError, check_segment, create_memfd, map_segment, memfd, seal

PAGE = os.sysconf("SC_PAGESIZE")


def sealed(data: bytes) -> int:
    fd = create_memfd("test")
    os.write(fd, data)
    seal(fd)
    return fd


def refused(fd: int, words: str, bound: int = 1 << 20) -> None:
    try:
        with pytest.raises(WorkerError, match=words):
            check_segment(fd, bound)
    finally:
        os.close(fd)


def test_a_sealed_segment_passes_and_maps_privately() -> None:
    fd = sealed(b"x" * 10_000)
    mapping = map_segment(fd, check_segment(fd, 10_000))
    mapping[0:1] = b"y"
    assert os.pread(fd, 1, 0) == b"x"
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"z", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_an_empty_segment_passes() -> None:
    fd = sealed(b"")
    assert check_segment(fd, 0) == 0
    os.close(fd)


@pytest.mark.parametrize("lacking", ["SEAL", "SHRINK", "GROW", "WRITE"])
def test_each_of_the_four_seals_is_needed(lacking: str) -> None:
    fd = create_memfd("test", PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memfd.SEALS & ~getattr(fcntl, f"F_SEAL_{lacking}"))
    refused(fd, "not sealed")


def test_a_seal_against_future_writes_only_is_not_enough() -> None:
    fd = create_memfd("test", PAGE)
    future_write = 0x10  # F_SEAL_FUTURE_WRITE: a mapping made before goes on writing
    seals = (memfd.SEALS & ~fcntl.F_SEAL_WRITE) | future_write
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    refused(fd, "not sealed")


def test_a_segment_with_holes_is_refused() -> None:
    fd = create_memfd("test", 1 << 20)
    os.pwrite(fd, b"x" * PAGE, 0)
    seal(fd)
    refused(fd, "holes")


def test_a_segment_over_the_bound_is_refused() -> None:
    refused(sealed(b"x" * 101), "101 bytes where 100", bound=100)


def test_huge_pages_are_refused() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("no huge pages here")
    seal(fd)
    refused(fd, "huge")


def test_what_is_no_memfd_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    refused(reading, "no memfd")
    left, right = socket.socketpair()
    right.close()
    refused(left.detach(), "no memfd")
    refused(os.open("/", os.O_RDONLY), "no memfd")
    refused(os.open("/", os.O_PATH), "no memfd")
    refused(os.open("/dev/zero", os.O_RDONLY), "no memfd")
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        refused(os.dup(file.fileno()), "no memfd|not sealed")
