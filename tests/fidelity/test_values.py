"""Each value that torch.load can return, by name: what it becomes, bit for bit."""

from __future__ import annotations

import argparse
import datetime
import decimal
import fractions
import io
import pathlib
import struct
import types
import uuid
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch

from isoload import manifest as m

from .compare import assert_same
from .inprocess import cross_bytes, cross_object

_BASE = torch.arange(24.0)


def _metadata() -> Any:
    state: Any = OrderedDict(weight=_BASE, tied=_BASE, part=_BASE[3:9])
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def _cycle() -> Any:
    inner: list[Any] = [_BASE]
    outer = (inner, {"inner": inner})
    inner += [outer, inner]
    return inner


def _parameter() -> Any:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.tag = {"axis": 1}  # type: ignore[attr-defined]
    return parameter


def _dtype(name: str) -> Any:
    dtype = getattr(torch, name)
    if name.startswith("q"):
        made = torch._empty_affine_quantized([5], scale=0.5, zero_point=1, dtype=dtype)
    else:
        made = torch.empty(6, dtype=dtype)
    storage = made.untyped_storage()
    storage.copy_(torch.arange(1, 200, dtype=torch.uint8).untyped_storage()[: storage.nbytes()])
    return made


_STORED = [name for name in m.DTYPES if not name.removeprefix("u").startswith("int")]
_STORED += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]

VALUES: dict[str, Any] = {
    "None": None,
    "False": False,
    "0": 0,
    "2**63 - 1": 2**63 - 1,
    "2**63": 2**63,
    "2**64": 2**64,
    "-2**63": -(2**63),
    "-2**63 - 1": -(2**63) - 1,
    "2040 bits": -(2**2039),
    "-0.0": -0.0,
    "a NaN's payload": struct.unpack("<d", bytes.fromhex("efbeadde0000f8ff"))[0],
    "complex": complex(-0.0, float("nan")),
    "a lone surrogate": "a\udcffb",
    "bytearray": bytearray(range(256)),
    "list": [1, [2, []]],
    "tuple": (1, (2, ())),
    "a set": {1, "a", (2, 3)},
    "Counter": Counter("abca"),
    "a dict of odd keys": {1: 2, "1": 3, 2.5: None, (1, "a"): [], None: (), torch.float32: 1},
    "_metadata": _metadata(),
    "a cycle": _cycle(),
    "torch.Size": torch.Size([2, 0, 3]),
    "dtype": torch.int3,
    "device": torch.device("cuda", 3),
    "layout": torch.sparse_bsr,
    "qscheme": torch.per_channel_affine_float_qparams,
    "a class": OrderedDict,
    "a tensor class": torch.FloatTensor,
    "a storage class": torch.FloatStorage,
    "a 0-d tensor": torch.tensor(5),
    "an empty tensor": torch.empty(3, 0, 2),
    "an expanded tensor": torch.ones(1).expand(5),
    "a transposed view": _BASE.view(4, 6).t(),
    "views": [_BASE, _BASE[4:], _BASE[:0], {"x": _BASE.view(2, 12)}],
    "requires_grad": torch.ones(2, requires_grad=True),
    "Parameter": _parameter(),
    "a frozen Parameter": torch.nn.Parameter(torch.arange(3), requires_grad=False),
    "a Parameter and its data": [(p := torch.nn.Parameter(torch.ones(2))), p.data],
    "Buffer": torch.nn.Buffer(torch.ones(2), persistent=False),
    "conj": torch.ones(2, dtype=torch.complex64).conj(),
    "neg": torch.ones(2, dtype=torch.complex64).conj().imag,
    "TypedStorage": _BASE._typed_storage(),
    "UntypedStorage": torch.ones(2).untyped_storage(),
    "a storage and its tensor": [_BASE, _BASE._typed_storage(), _BASE[1:]],
    "per tensor": torch.quantize_per_tensor(torch.rand(4), 0.1, 2, torch.qint8),
    "per channel": torch.quantize_per_channel(
        torch.rand(3, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, 2, 3]), 0, torch.quint8
    ),
    "float qparams": torch.quantize_per_channel(
        torch.rand(2, 3), torch.rand(3) + 0.1, torch.rand(3), 1, torch.quint8
    ),
    "COO": torch.eye(3).to_sparse(),
    "uncoalesced COO": torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),
    "hybrid COO": torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 4), (3, 4)),
    "CSR": torch.eye(4).to_sparse_csr(),
    "CSC": torch.eye(4).to_sparse_csc(),
    "BSR": torch.eye(4).to_sparse_bsr((2, 2)),
    "BSC": torch.eye(4).to_sparse_bsc((2, 2)),
    "nested": torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(4, 3)]),
    "jagged": torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(4, 3)], layout=torch.jagged),
    "meta": torch.empty(2, 3, device="meta"),
    **{f"a tensor of {name}": _dtype(name) for name in _STORED},
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_value_comes_back_as_torch_load_gives_it(name: str, zipped: bool) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save([VALUES[name]], file, _use_new_zipfile_serialization=zipped)
        try:
            expected = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        except Exception as error:
            pytest.skip(f"torch.load does not open it: {type(error).__name__}")
        actual, reader = cross_bytes(file.getvalue(), fallback="none")
    assert reader == "weights_only"
    assert_same(actual, expected)


PLAIN: dict[str, Any] = {
    "bytes": b"\0\xff",
    "frozenset": frozenset({1, frozenset()}),
    "defaultdict": defaultdict(list, a=[1]),
    "deque": deque([1, [2]], maxlen=3),
    "range": range(1, -5, -2),
    "slice": slice(None, 3, 2),
    "Ellipsis": ...,
    "date": datetime.date(2024, 2, 29),
    "time": datetime.time(1, 2, 3, 4, fold=1),
    "datetime": datetime.datetime(2024, 2, 29, 1, tzinfo=datetime.timezone.utc),
    "timedelta": datetime.timedelta(-1, 2, 3),
    "timezone": datetime.timezone(datetime.timedelta(hours=1), "here"),
    "Decimal": decimal.Decimal("-1.50E-7"),
    "Fraction": fractions.Fraction(-2, 3),
    "UUID": uuid.UUID(int=12345),
    "path": pathlib.PurePosixPath("/a/../b"),
    "a local path": pathlib.PosixPath("x/y"),
    "SimpleNamespace": types.SimpleNamespace(a=1, b=[2]),
    "argparse.Namespace": argparse.Namespace(lr=0.1),
    "memory_format": torch.channels_last,
    "numpy array": np.arange(6.0).reshape(2, 3),
    "Fortran array": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "empty array": np.zeros((0, 3)),
    "text array": np.array(["a", "bcd"]),
    "record array": np.zeros(2, dtype=[("a", "<f4"), ("b", "<i2", (2,))]),
    "times": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "object array": np.array([1, "a", None, [2]], dtype=object),
    "numpy scalar": np.float32(0.1),
    "numpy time": np.datetime64("2020-01-01", "ns"),
    "numpy dtype": np.dtype([("x", ">u2")]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_value_that_only_later_readers_give_crosses_whole(name: str) -> None:
    assert_same(cross_object([PLAIN[name], PLAIN[name]]), [PLAIN[name], PLAIN[name]])


def test_an_array_is_writable_and_its_own() -> None:
    array = np.arange(4)
    made = cross_object([array])[0]
    made[0] = 9
    assert array[0] == 0
    assert made.tolist() == [9, 1, 2, 3]
