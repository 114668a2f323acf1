"""The direct reader of zips finds what torch's reader finds, where it finds it, or finds nothing.

torch's reader is not asked when an ordinary file is read: that it would take the file, and see the
same in it, is shown here, on archives of several writers with their headers changed at random.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from typing import Any

import pytest
import torch

from isoload.worker.direct_zip import read_archive

from .graphs import build, compare
from .programs import archive, direct, record, saved, segments, source_of, torch_load

VALUE = {f"k{i}": torch.full((3,), i) for i in range(4)}


def agree(data: bytes) -> bool:
    """Whether the records were read; each is then where torch's reader finds it, and torch.load
    gives what the direct reader gives, if that reads the file at all."""
    source = source_of(data)
    found = read_archive(source)
    if found is None or not found.is_intact(source):
        return False
    records = found.records
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    reader.serialization_id()
    assert list(records) == reader.get_all_records()
    for name, (offset, size) in records.items():
        assert reader.get_record_offset(name) == offset
        assert reader.get_record_size(name) == size
        assert bytes(reader.get_record(name)) == data[offset : offset + size]
    read = direct(data)
    if read is not None:
        compare(torch_load(data), build(read.graph, *segments(data, read)))
    return True


def rezipped(
    data: bytes,
    compression: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
    without: tuple[str, ...] = (),
    *,
    streamed: bool = False,
    folder: str = "archive",
) -> bytes:
    """The same records as Python's zipfile writes them. `streamed`: with data descriptors."""
    file = io.BytesIO()
    target: Any = _Unseekable(file) if streamed else file
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w", compression) as new:
        held = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name, content in {**held, **(more or {})}.items():
            if name not in without:
                new.writestr(f"{folder}/{name}", content)
    return file.getvalue()


class _Unseekable(io.RawIOBase):
    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


def wide(data: bytes, *fields: str, entries: int = 1_000_000) -> bytes:
    """The same archive, with these fields of the first entries given in 64 bits, as for large files
    ("size": packed and unpacked; "header": the offset of the record's own)."""
    start = data.index(b"PK\1\2")
    tail = data.index(b"PK\6\6", start) if b"PK\6\6" in data[start:] else len(data) - 22
    made, at, number = bytearray(), start, 0
    while at < tail:
        name, extra, comment = struct.unpack_from("<HHH", data, at + 28)
        end = at + 46 + name + extra + comment
        entry = bytearray(data[at:end])
        if number < entries:
            values = []
            if "size" in fields:
                values += struct.unpack_from("<II", entry, 20)
                struct.pack_into("<II", entry, 20, *[0xFFFFFFFF] * 2)
            if "header" in fields:
                values += struct.unpack_from("<I", entry, 42)
                struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
            field = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
            struct.pack_into("<H", entry, 30, len(field))
            entry = entry[: 46 + name] + field
        made += entry
        at, number = end, number + 1
    last = bytearray(data[tail:])
    end = len(last) - 22
    if struct.unpack_from("<I", last, end + 12)[0] != 0xFFFFFFFF:
        struct.pack_into("<I", last, end + 12, len(made))
    if tail < len(data) - 22:
        struct.pack_into("<Q", last, 40, len(made))
        struct.pack_into("<Q", last, end - 20 + 8, start + len(made))
    return data[:start] + bytes(made) + bytes(last)


WHOLE = saved(VALUE)
SEEDS = {
    "torch": WHOLE,
    "one record": archive(b"\x80\x02N."),
    "zipfile": rezipped(WHOLE),
    "data descriptors": rezipped(WHOLE, streamed=True),
    "64 bits": wide(WHOLE, "header", entries=1),
    "64 bits of all": wide(WHOLE, "size", "header"),
    "64 bits of sizes": wide(WHOLE, "size"),
    "64 bits of zipfile": wide(rezipped(WHOLE), "header", entries=1),
    "64 bits of all of zipfile": wide(rezipped(WHOLE), "size", "header"),
    "names of all kinds": rezipped(WHOLE, more={"data/x y": b"1", "~": b"2", "a/b/c.pkl": b"3"}),
}


@pytest.mark.parametrize("name", SEEDS)
def test_an_archive_of_any_writer_is_read(name: str) -> None:
    assert agree(SEEDS[name])


def mutated_zip(random_: random.Random, whole: bytes, headers: list[int]) -> bytes:
    data = bytearray(whole)
    for _ in range(random_.randint(1, 3)):
        at = min(random_.choice(headers) + random_.randrange(100), len(data) - 1)
        kind = random_.randrange(8)
        if kind < 5:
            data[at] = random_.choice((0, 1, 8, 255, data[at] ^ 1, random_.randrange(256)))
        elif kind == 5:
            data[at : at + 2] = random_.choice((b"\xff\xff", b"\0\0", b"PK"))
        elif kind == 6:
            data[at : at + 4] = random_.choice((b"\xff" * 4, b"PK\1\2", b"PK\5\6", b"PK\6\7"))
        else:
            other = random_.choice(headers)
            data[at : at + 4] = data[other : other + 4]
    return bytes(data)


def differential(random_: random.Random, whole: bytes, rounds: int) -> int:
    headers = [i for i in range(len(whole)) if whole[i : i + 2] == b"PK"]
    return sum(agree(mutated_zip(random_, whole, headers)) for _ in range(rounds))


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_zip_is_read_as_torch_reads_it_or_handed_over(name: str) -> None:
    assert 0 < differential(random.Random(7), SEEDS[name], 2_000) < 2_000


@pytest.mark.parametrize("name", ["torch", "zipfile", "64 bits", "sizes", "data descriptors"])
def test_every_byte_of_a_header_changed_is_read_as_torch_reads_it_or_handed_over(name: str) -> None:
    one = archive(b"\x80\x02N.")
    whole = {
        "torch": one,
        "zipfile": rezipped(one),
        "64 bits": wide(one, "header"),
        "sizes": wide(one, "size", "header", entries=2),
        "data descriptors": rezipped(one, streamed=True),
    }[name]
    for at in [*range(60), *range(whole.index(b"PK\1\2"), len(whole))]:
        for value in {0, 1, 2, 3, 0x10, 0xFF, *(whole[at] ^ 1 << bit for bit in range(8))}:
            data = bytearray(whole)
            data[at] = value
            agree(bytes(data))


SETTINGS = {
    "a version of two digits": ({"version": b"10"}, True),
    "no version": ({}, False),
    "a version too new": ({"version": b"11\n"}, False),
    "a version of nothing": ({"version": b""}, False),
    "a version of zero": ({"version": b"0"}, False),
    "a version that is no number": ({"version": b"x"}, False),
    "a version with more behind it": ({"version": b"3x"}, False),
    "a version in capitals": ({"VERSION": b"3\n"}, False),
    "another version in capitals": ({"version": b"3\n", ".DATA/version": b"x"}, False),
    "a byte order in capitals": ({"version": b"3\n", "BYTEORDER": b"big"}, False),
    "an identity that is no text": ({"version": b"3\n", ".data/serialization_id": b"\xff"}, False),
    "debug symbols": ({"version": b"3\n", "x.debug_pkl": b""}, True),
    "a folder": ({"version": b"3\n", "x/": b""}, False),
    "a name of a zero byte": ({"version": b"3\n", "x\x01y": b""}, False),
    "a name that is not ASCII": ({"version": b"3\n", "é": b""}, False),
    "a name of 254 characters": ({"version": b"3\n", "x" * 254: b""}, True),
    "a name of 1,000 characters": ({"version": b"3\n", "x" * 1000: b""}, False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_torch_looks_at_before_the_pickle_is_looked_at(name: str) -> None:
    more, accepted = SETTINGS[name]
    # No byte order: one of the cases brings its own.
    data = rezipped(WHOLE, without=("version", "byteorder", ".data/serialization_id"))
    changed = rezipped(data, more=more)
    assert agree(changed) == accepted


@pytest.mark.parametrize("folder", ["", "a", "a b", "archive.v2"])
def test_the_folder_may_have_any_name(folder: str) -> None:
    assert agree(rezipped(WHOLE, folder=folder))


def test_records_in_two_folders_are_handed_over() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        new.writestr("a/data.pkl", record(WHOLE))
        new.writestr("a/version", b"3\n")
        new.writestr("b/x", b"")
    assert not agree(file.getvalue())
