"""Common values come back as themselves from the inert reader; everything else as a record."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import types
import uuid
from typing import Any, NamedTuple

import dill
import numpy as np
import pytest
import torch

from isoload.worker.recorded import Recorded

from .files import legacy, saved, unpickle

PROTOCOLS = range(6)


def _ordered() -> collections.OrderedDict[str, int]:
    made = collections.OrderedDict(a=1)
    made.note = "kept"  # type: ignore[attr-defined]
    return made


VALUES: list[Any] = [
    *(None, True, 1, -5, 2**70, 2**2040 - 1, 1.5, float("inf"), -0.0, "é", "\ud800", b"abc", b""),
    *(bytearray(b"xx"), 1 + 2j, [1, [2]], (1, 2), (1, 2, 3, 4), {"a": 1}, {1, 2}, frozenset([1])),
    *(range(3), slice(1, None), _ordered(), collections.Counter("aab"), collections.deque([1], 3)),
    collections.defaultdict(list, a=[1]),
    datetime.datetime(2026, 11, 23, 1, 2, 3, 4, datetime.timezone.utc),
    datetime.datetime(2026, 11, 23, fold=1),
    *(datetime.date(2026, 1, 2), datetime.time(1, 2), datetime.timedelta(1, 2, 3)),
    datetime.timezone(datetime.timedelta(hours=1), "X"),
    *(decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=7)),
    *(pathlib.PosixPath("/a/b"), pathlib.PureWindowsPath("c:\\x")),
    *(types.SimpleNamespace(a=1), argparse.Namespace(b=2)),
    *(torch.float32, torch.strided, torch.Size([1, 2]), torch.device("cuda", 1)),
    torch.per_tensor_affine,
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_plain_value_comes_back_as_itself(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    expected = pickle.loads(data)
    made, reading = unpickle(data)
    assert type(made) is type(expected)
    assert repr(made) == repr(expected)
    assert getattr(made, "__dict__", None) == getattr(expected, "__dict__", None)
    assert reading.calls == []
    assert reading.warnings == []


ARRAYS: list[Any] = [
    *(np.arange(5, dtype="u4"), np.asfortranarray(np.ones((2, 3))), np.zeros((0, 3)), np.array(1)),
    *(np.array(["a", 1], object), np.array("2020", "M8[s]"), np.array([b"ab"]), np.array(["xyz"])),
    *(np.array([1, 2], ">i4"), np.zeros(3, "f2"), np.zeros(2, [("a", "i4"), ("b", "f8", (2,))])),
    *(np.float64(3), np.bool_(True), np.timedelta64(3, "us"), np.datetime64("NaT")),
    *(np.void(b"abcd"), np.longdouble(2), np.dtype(">f8"), np.dtype("O"), np.dtype("M8[3D]")),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: repr(value)[:30])
def test_a_numpy_value_comes_back_as_pickle_gives_it(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    expected = pickle.loads(data)
    for pickled in (data, data.replace(b"numpy._core", b"numpy.core")):
        if len(pickled) != len(data) and protocol >= 4:
            continue  # the name's length stands before it
        made, reading = unpickle(pickled)
        assert type(made) is type(expected)
        assert repr(made) == repr(expected)
        assert getattr(made, "dtype", None) == getattr(expected, "dtype", None)
        assert getattr(made, "flags", None) == getattr(expected, "flags", None) or isinstance(
            made, (np.generic, np.dtype)
        )
        assert reading.calls == []


def test_a_python_2_array_has_its_bytes() -> None:
    raw = bytes(range(120, 136))
    pickled = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I16\nt"
        b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + repr(raw.decode("latin-1")).encode("ascii", "backslashreplace")
        + b"\ntb."
    )
    made, _ = unpickle(pickled)
    assert made.tobytes() == raw


class Mapping(dict[str, int]):
    pass


class Sequence(list[int]):
    pass


class Colour(enum.Enum):
    RED = 1


class Slots:
    __slots__ = ("a", "b")


class Keyword:
    def __new__(cls, *args: object, k: object = None) -> Keyword:
        return object.__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[int, int], dict[str, int]]:
        return (1, 2), {"k": 3}


class Outer:
    class Inner:
        pass


class Point(NamedTuple):
    x: int
    y: int


def _recorded(value: object, protocol: int) -> Recorded:
    made, _ = unpickle(pickle.dumps(value, protocol))
    assert isinstance(made, Recorded)
    assert not made.reference
    assert made.name == f"{type(value).__module__}.{type(value).__qualname__}"
    return made


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_subclasses_of_containers_hold_what_they_held(protocol: int) -> None:
    assert _recorded(Mapping(a=1), protocol).pairs == [("a", 1)]
    assert _recorded(Sequence([1, 2]), protocol).items == [1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_enum_member_keeps_its_value(protocol: int) -> None:
    assert _recorded(Colour.RED, protocol).args == (1,)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_slots_are_state_like_any_other(protocol: int) -> None:
    value = Slots()
    value.a, value.b = 1, 2
    assert _recorded(value, protocol).state == {"a": 1, "b": 2}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_keyword_arguments_of_new_are_kept(protocol: int) -> None:
    made = _recorded(Keyword(), protocol)
    assert (made.args, made.kwargs) == ((1, 2), {"k": 3})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_nested_class_has_its_dotted_name(protocol: int) -> None:
    _recorded(Outer.Inner(), protocol)
    made, _ = unpickle(pickle.dumps(Outer.Inner, protocol))
    assert made.reference
    assert made.name.endswith("Outer.Inner")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_named_tuple_keeps_its_fields(protocol: int) -> None:
    assert _recorded(Point(1, 2), protocol).args == (1, 2)


def test_a_partial_is_recorded_and_not_called() -> None:
    made, reading = unpickle(pickle.dumps(functools.partial(print, 1)))
    assert made.name == "functools.partial"
    assert [call.name for call in reading.calls] == ["functools.partial"]


def test_a_class_that_dill_wrote_by_value_has_its_own_name() -> None:
    made_here = type("Local", (), {"__module__": "__main__", "x": 1})
    made, _ = unpickle(dill.dumps(made_here(), byref=False))
    assert made.name == "__main__.Local"


def test_one_class_is_one_object() -> None:
    made, _ = unpickle(pickle.dumps([Outer, Outer.Inner, Outer]))
    assert made[0] is made[2]
    assert made[0] is not made[1]


@pytest.mark.parametrize("write", [saved, legacy])
def test_bytes_that_torch_saved_within_a_pickle_are_read(write: Any) -> None:
    storage = torch.FloatStorage([1.0, 2.0])
    made, reading = unpickle(pickle.dumps(_Nested(write(storage)), 2))
    assert made.dtype == torch.float32
    assert made.tolist() == [1.0, 2.0]
    assert reading.calls == []


class _Nested:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.data,)
