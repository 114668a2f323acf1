"""Files from before torch 1.6, read directly: the same result as torch's, or handed over."""

from __future__ import annotations

import os
import random
import struct
from typing import Any

import pytest
import torch

from isoload import manifest

from .graphs import Difference, build, compare
from .programs import direct, saved, segments, torch_load


def legacy(value: Any) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False)


def shifted(shift: int) -> bytes:
    """A file whose storages all begin at the same remainder."""
    tensors = {"a": torch.arange(64.0), "b": torch.arange(64), "c": torch.ones(10)}
    for length in range(16):
        data = legacy({"x" * length: tensors})
        if data.index(struct.pack("<64f", *range(64))) % 8 == shift:
            return data
    raise AssertionError("no such file")


@pytest.mark.parametrize("shift", range(8))
def test_every_alignment_gives_what_torch_gives(shift: int) -> None:
    data = shifted(shift)
    read = direct(data)
    assert read is not None
    for storage in read.graph.storages:
        assert storage.offset % 4 == 0
    compare(torch_load(data), build(read.graph, *segments(data, read)))


def test_aligned_storages_of_a_snapshot_stay_where_they_are() -> None:
    read = direct(shifted(0))
    assert read is not None
    assert read.arena is None
    assert {storage.segment for storage in read.graph.storages} == {manifest.SOURCE}


@pytest.mark.parametrize("shift", range(8))
def test_a_copy_whose_end_is_aligned_needs_no_arena(shift: int) -> None:
    """As the parent makes it: `isoload.copying.copying`."""
    data = shifted(shift)
    lead = -len(data) % 64
    read = direct(data, lead=lead)
    assert read is not None
    assert read.arena is None
    for storage in read.graph.storages:
        assert storage.segment == manifest.SOURCE
        assert storage.offset % 4 == 0
    compare(torch_load(data), build(read.graph, *segments(data, read, lead=lead)))


@pytest.mark.parametrize("lead", [0, 1, 4, 31, 63])
@pytest.mark.parametrize("shift", [1, 4])
def test_what_does_not_lie_aligned_in_the_copy_is_in_the_arena(shift: int, lead: int) -> None:
    data = shifted(shift)
    read = direct(data, lead=lead)
    assert read is not None
    for storage in read.graph.storages:
        assert storage.offset % 4 == 0
    compare(torch_load(data), build(read.graph, *segments(data, read, lead=lead)))


def test_no_bytes_cross_where_none_are_asked_for() -> None:
    read = direct(shifted(1), manifest.Request(fallback="none", tensors=False))
    assert read is not None
    assert read.arena is None
    assert {storage.segment for storage in read.graph.storages} == {manifest.ABSENT}


def test_an_arena_larger_than_allowed_is_not_made() -> None:
    assert direct(shifted(1), manifest.Request(fallback="none", max_output=100)) is None


def test_a_truncated_file_is_handed_over() -> None:
    data = shifted(1)
    for end in (len(data) - 1, len(data) - 300, 100, 20):
        assert direct(data[:end]) is None


def test_a_storage_of_another_size_than_its_tensor_needs_is_handed_over() -> None:
    data = shifted(1)
    at = data.index(struct.pack("<q64f", 64, *range(64)))
    assert direct(data[:at] + struct.pack("<q", 63) + data[at + 8 :]) is None


def test_a_storage_without_a_dtype_is_handed_over_as_torch_refuses_it() -> None:
    data = legacy(torch.ones(3).to(torch.float8_e4m3fn))
    with pytest.raises(AttributeError):
        torch_load(data)
    assert direct(data) is None


def test_views_of_storages_are_handed_over() -> None:
    data = legacy({"a": torch.ones(2)})
    pickled = data.replace(b"K\x02Nt", b"K\x02(X\x01\0\0\0vK\x00K\x02tt")
    assert pickled != data
    assert torch_load(pickled) is not None
    assert direct(pickled) is None


def test_a_storage_without_bytes_in_the_stream_is_handed_over() -> None:
    data = legacy(torch.ones(2))
    keys = data.rindex(b"\x80\x02]")
    assert direct(data[:keys] + b"\x80\x02]q\x00.") is None


def test_damaged_files_are_read_as_torch_reads_them_or_handed_over() -> None:
    base = legacy({"a": torch.arange(4.0), "b": [torch.ones(3), {"c": (1, "x")}]})
    random_ = random.Random(5)
    descriptors = len(os.listdir("/proc/self/fd"))
    accepted = 0
    for _ in range(4_000):
        data = bytearray(base)
        at = random_.randrange(len(data))
        choice = random_.randrange(3)
        if choice == 0:
            data[at] = random_.randrange(256)
        elif choice == 1:
            data[at:at] = data[at : at + random_.randint(1, 4)]
        else:
            del data[at : at + random_.randint(1, 4)]
        read = direct(bytes(data))
        if read is None:
            continue
        accepted += 1
        try:
            compare(torch_load(bytes(data)), build(read.graph, *segments(bytes(data), read)))
        except Exception as error:
            raise Difference(f"{bytes(data)!r}: {error!r}") from error
    assert accepted > 100
    assert len(os.listdir("/proc/self/fd")) == descriptors
