"""Files from before torch 1.6: views, modules saved with their source, typed tensors, tags."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

import pytest
import torch

from isoload.worker.recorded import Recorded

from .files import failure, legacy, read, root

MAGIC = 0x1950A86A20F9469CFC6C


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.saved if isinstance(obj, _Saved) else None


class _Saved:
    """Pickles as a persistent id."""

    def __init__(self, *saved: object) -> None:
        self.saved = saved


def _file(value: object, storages: dict[str, bytes], width: int = 4, protocol: int = 2) -> bytes:
    body = io.BytesIO()
    _Pickler(body, protocol).dump(value)
    head = b"".join(pickle.dumps(part, protocol) for part in (MAGIC, 1001, {"little_endian": True}))
    tail = b"".join(struct.pack("<q", len(data) // width) + data for data in storages.values())
    return head + body.getvalue() + pickle.dumps(list(storages), protocol) + tail


class _Made:
    """Pickles as a call, and a state."""

    def __init__(self, function: Any, args: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, args, state) if state is not None else (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


FLOATS = struct.pack("<6f", *range(6))


@pytest.mark.parametrize("reader", ["weights_only", "inert"])
def test_views_of_one_storage_share_it(reader: str) -> None:
    def tensor(view: object) -> _Made:
        storage = _Saved("storage", torch.FloatStorage, "7", "cuda:1", 6, view)
        size = 6 if view is None else 3
        return _Made(torch._utils._rebuild_tensor, (storage, 0, (size,), (1,)))

    value: dict[str, object] = {"whole": tensor(None), "part": tensor(("8", 2, 3))}
    if reader == "inert":
        value["more"] = range(3)
    reading = read(_file(value, {"7": FLOATS}))
    assert reading.reader == reader
    assert isinstance(reading.root, dict)
    whole, part = reading.root["whole"], reading.root["part"]
    assert part.tolist() == [2.0, 3.0, 4.0]
    assert part.data_ptr() == whole.data_ptr() + 8
    assert reading.location(whole.untyped_storage()) == "cuda:1"
    assert reading.location(part.untyped_storage()) == "cuda:1"


def test_empty_views_of_different_types_keep_their_types() -> None:
    pair = torch.empty(0, dtype=torch.complex64).conj()
    data = legacy([pair, pair.imag, range(1)])
    expected = torch.load(io.BytesIO(data), weights_only=False)
    loaded: Any = read(data).root
    assert [tensor.dtype for tensor in loaded[:2]] == [tensor.dtype for tensor in expected[:2]]
    assert [tensor.is_neg() for tensor in loaded[:2]] == [False, True]
    first, second = (tensor.untyped_storage()._cdata for tensor in loaded[:2])
    assert first != second


def test_a_module_saved_with_its_source_is_a_record() -> None:
    cls = _Saved("module", _Reference("some.place", "Net"), "net.py", "class Net: pass")
    reading = read(_file({"net": cls}, {}))
    assert isinstance(reading.root, dict)
    held = reading.root["net"]
    assert isinstance(held, Recorded)
    assert held.name == "torch.nn.modules.linear.Linear"


class _Reference:
    """Pickles as a class that is there for pickle's sake: its name is what counts."""

    def __new__(cls, module: str, name: str) -> Any:
        return torch.nn.Linear


@pytest.mark.parametrize("package", ["torch", "torch.cuda"])
def test_a_typed_tensor_built_by_its_state_has_its_values(package: str) -> None:
    storage = b"(X\x07\x00\x00\x00storagec" + package.encode() + b"\nFloatStorage\n"
    storage += b"X\x01\x00\x00\x007X\x03\x00\x00\x00cpuK\x06NtQ"
    body = b"\x80\x02c" + package.encode() + b"\nFloatTensor\n)\x81"
    body += b"(" + storage + b"K\x01K\x02K\x02\x86K\x02K\x01\x86tb."
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {}))
    data = head + body + pickle.dumps(["7"], 2) + struct.pack("<q", 6) + FLOATS
    reading = read(data)
    assert isinstance(reading.root, torch.Tensor)
    assert reading.root.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_storage_that_no_tensor_names_is_damage() -> None:
    assert failure(_file({"r": range(2)}, {"9": FLOATS})).kind == "damaged"


def test_a_tensor_beyond_its_storage_is_damage() -> None:
    storage = _Saved("storage", torch.FloatStorage, "7", "cpu", 6, None)
    tensor = _Made(torch._utils._rebuild_tensor, (storage, 0, (7,), (1,)))
    found = failure(_file({"t": tensor, "r": range(2)}, {"7": FLOATS}))
    assert found.kind == "damaged"
    assert "28 bytes" in found.message


def test_a_storage_larger_than_the_file_is_damage_and_takes_no_memory() -> None:
    storage = _Saved("storage", torch.FloatStorage, "7", "cpu", 1 << 40, None)
    tensor = _Made(torch._utils._rebuild_tensor, (storage, 0, (1,), (1,)))
    found = failure(_file({"t": tensor, "r": range(2)}, {"7": FLOATS}))
    assert found.kind == "damaged"
    assert "cut off" in found.message


@pytest.mark.parametrize("tag", ["cpu", "cuda:0", "mps", "xla:3", "anything at all"])
def test_the_saved_tag_is_kept_for_each_storage(tag: str) -> None:
    data = legacy({"a": torch.ones(2), "b": torch.ones(3)})
    old = b"X\x03\x00\x00\x00cpu"
    tagged = data.replace(old, b"X" + struct.pack("<I", len(tag)) + tag.encode())
    reading = read(tagged)
    assert reading.reader == "weights_only"
    assert isinstance(reading.root, dict)
    for tensor in reading.root.values():
        assert reading.location(tensor.untyped_storage()) == tag


def test_bytes_behind_the_last_storage_are_said() -> None:
    found = read(legacy({"a": torch.ones(2), "r": range(3)}) + b"more")
    assert any("4 bytes follow" in warning for warning in found.warnings)
    assert root(legacy({"a": torch.ones(2)}))["a"].tolist() == [1.0, 1.0]
