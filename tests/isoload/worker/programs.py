"""Checkpoints out of hand-made pickles, and torch's own loader run on them."""

from __future__ import annotations

import io
import os
import random
import warnings
import weakref
from typing import Any

import torch
from torch import _weights_only_unpickler

from isoload import manifest
from isoload.worker.direct import read_direct
from isoload.worker.reading import Reading
from isoload.worker.torch_source import WorkerSource
from isoload.worker.vocabulary import own_vocabulary
from sandbox.memfd import check_segment, create_memfd, seal

REQUEST = manifest.Request(fallback="none")


def source_of(data: bytes, lead: int = 0) -> WorkerSource:
    """A source as the worker gets it. Its descriptor is closed with it."""
    fd = create_memfd("test")
    os.write(fd, data)
    seal(fd)
    source = WorkerSource(fd, lead=lead)
    weakref.finalize(source, os.close, fd)
    return source


def saved(value: Any, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **kwargs)
    return file.getvalue()


def direct(data: bytes, request: manifest.Request = REQUEST, *, lead: int = 0) -> Reading | None:
    """What the direct reader makes of a snapshot of the bytes."""
    reading = Reading()
    read = read_direct(source_of(data, lead), request, own_vocabulary(), reading)
    return reading if read else None


def segments(data: bytes, read: Reading, *, lead: int = 0) -> list[memoryview]:
    """The bytes of the source and, where there is one, of the arena, whose descriptor is closed."""
    data = bytes(lead) + data
    if read.arena is None:
        return [memoryview(data)]
    size = check_segment(read.arena, 1 << 30)
    arena = os.pread(read.arena, size, 0)
    os.close(read.arena)
    return [memoryview(data), memoryview(arena)]


def _anywhere(storage: Any, location: str) -> Any:
    """A map_location: where a storage belongs is the parent's business."""
    del location
    return storage


def torch_load(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), _anywhere, weights_only=True)


def archive(pickled: bytes, records: dict[str, bytes] | None = None) -> bytes:
    """A zip as torch writes it, around any pickle."""
    file = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(file)
    writer.write_record("data.pkl", pickled, len(pickled))
    for name, data in (records or {}).items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return file.getvalue()


def record(data: bytes, name: str = "data.pkl") -> bytes:
    return bytes(torch._C.PyTorchFileReader(io.BytesIO(data)).get_record(name))


class Records:
    """What torch's zip loader asks of an archive, without one: fast, for many small programs."""

    def __init__(self, records: dict[str, bytes]) -> None:
        self.records = records

    def has_record(self, name: str) -> bool:
        return name in self.records

    def get_record(self, name: str) -> bytes:
        return self.records[name]

    def get_storage_from_record(self, name: str, nbytes: int, _: Any) -> Any:
        data = bytearray(self.records[name])
        if len(data) != nbytes:
            raise ValueError("torch would read past the record")
        if not data:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(data, dtype=torch.uint8)

    def serialization_id(self) -> str:
        return ""


def torch_run(pickled: bytes, records: dict[str, bytes]) -> Any:
    """torch.load's own loader on a pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = Records({**records, "data.pkl": pickled})
        return torch.serialization._load(
            reader, _anywhere, _weights_only_unpickler, encoding="utf-8"
        )


FRAGMENTS = [
    *(b"(", b")", b"]", b"}", b"N", b"\x88", b"\x89", b"\x8f", b"t", b"\x85", b"\x86", b"\x87"),
    *(
        b"R",
        b"Q",
        b"b",
        b"s",
        b"u",
        b"a",
        b"e",
        b"(e",
        b"(u",
        b"u(u",
        b"e(e",
        b"}(K\x00K\x01u(u",
        b"](K\x01e(e",
        b"K\x00",
        b"K\x01",
        b"K\x02",
        b"K\x04",
    ),
    *(b"J\xff\xff\xff\xff", b"M\x00\x01", b"G" + bytes(8), b"\x8a\x01\x05", b"\x8a\x00"),
    *(b"X\x01\0\0\0a", b"X\x02\0\0\0bc", b"U\x01a", b"U\x02\xff\xfe", b"X\x01\0\0\0" + b"0"),
    *(b"q\x00", b"q\x01", b"q\x02", b"h\x00", b"h\x01", b"h\x02", b"r\x03\0\0\0", b"j\x03\0\0\0"),
    *(b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"c__builtin__\nset\n"),
    *(b"c__builtin__\nbytearray\n", b"c__builtin__\ncomplex\n", b"c_codecs\nencode\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor\n"),
    *(b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_tensor_v3\n"),
    *(b"ctorch\nFloatStorage\n", b"ctorch\nLongStorage\n", b"ctorch.storage\nUntypedStorage\n"),
    *(b"ctorch\nSize\n", b"ctorch\ndevice\n", b"ctorch\nfloat32\n", b"ctorch\nint64\n"),
    *(b"ctorch.nn.parameter\nParameter\n", b"ctorch\nTensor\n", b"cos\nsystem\n"),
    *(b"\x81", b"0", b"1", b"2", b"\x90", b"\x91", b"\x93", b"\x94", b"o", b"l", b"d", b"\x80\x02"),
    *(b"ccollections\nOrderedDict\n)R", b"}q\x00", b"]q\x01", b"X\x06\0\0\0latin1", b"K\x00K\x02t"),
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ",
    b"(X\x07\0\0\0storagectorch\nLongStorage\nX\x01\0\0\x001X\x03\0\0\0cpuK\x02tQ",
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x001X\x03\0\0\0cpuK\x04tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQK\x00K\x02K\x02\x86K\x02K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtR",
]
"""Pieces of programs: opcodes of every kind, some with their arguments, some whole values."""

RECORDS = {"data/0": bytes(range(16)), "data/1": bytes(range(16, 32)), "data/a": bytes(4)}


def random_program(random_: random.Random) -> bytes:
    """A program out of fragments. Most are refused by everybody; some are not."""
    count = random_.randint(1, 14)
    return b"\x80\x02" + b"".join(random_.choices(FRAGMENTS, k=count)) + b"."


def mutated(random_: random.Random, pickled: bytes) -> bytes:
    """A program with one to three pieces put in, taken out, doubled or overwritten."""
    data = bytearray(pickled)
    for _ in range(random_.randint(1, 3)):
        at = random_.randrange(2, max(len(data), 3))
        length = random_.randint(1, 6)
        choice = random_.randrange(5)
        if choice == 0:
            data[at:at] = random_.choice(FRAGMENTS)
        elif choice == 1:
            del data[at : at + length]
        elif choice == 2:
            data[at : at + 1] = bytes([random_.randrange(256)])
        elif choice == 3:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = random_.choice(FRAGMENTS)
    return bytes(data)
