"""An allowed class is rebuilt from plain state, and none of its code runs."""

from __future__ import annotations

import collections
import dataclasses
import enum
import io
from typing import Any, NamedTuple

import pytest
import torch

from isoload.errors import CheckpointError
from isoload.opaque import Opaque
from isoload.rebuild import allowed_classes
from tests.fidelity.inprocess import cross_bytes


class _Trap:
    """Every hook that unpickling could reach."""

    ran: list[str] = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        self.ran.append("__init__")

    def __setstate__(self, state: Any) -> None:
        self.ran.append("__setstate__")

    def __setattr__(self, name: str, value: Any) -> None:
        self.ran.append("__setattr__")

    def __new__(cls, *args: Any) -> Any:
        cls.ran.append("__new__")
        return super().__new__(cls)


@dataclasses.dataclass
class _Config:
    lr: float
    layers: list[int]


@dataclasses.dataclass(frozen=True)
class _Key:
    name: str


class _Point(NamedTuple):
    x: Any
    y: Any


class _Color(enum.Enum):
    RED = "r"
    BLUE = "b"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise RuntimeError("ran")


class _Slotted:
    __slots__ = ("a", "b")


class _Attributes(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: Any, value: Any) -> None:
        raise RuntimeError("ran")


class _Items(list):  # type: ignore[type-arg]
    def append(self, value: Any) -> None:
        raise RuntimeError("ran")

    extend = append


class _Called:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _Called, (self.value,)


class _Custom(torch.Tensor):
    pass


def cross(obj: Any, *classes: type) -> Any:
    file = io.BytesIO()
    torch.save(obj, file)
    return cross_bytes(file.getvalue(), allow=allowed_classes(classes))[0]


def test_a_plain_object_gets_its_state_and_no_code_runs() -> None:
    trap = object.__new__(_Trap)
    vars(trap)["tensor"] = torch.ones(2)
    _Trap.ran.clear()
    made = cross([trap, trap], _Trap)
    assert type(made[0]) is _Trap
    assert made[0] is made[1]
    assert vars(made[0])["tensor"].tolist() == [1, 1]
    assert _Trap.ran == []


def test_dataclasses_namedtuples_enums_and_slots() -> None:
    slotted = _Slotted()
    slotted.a = [1]
    obj = [_Config(0.1, [1]), _Point(1, [2]), _Color.RED, _Color.RED, slotted]
    made = cross(obj, _Config, _Point, _Color, _Slotted)
    assert made[:4] == obj[:4]
    assert [type(item) for item in made] == [type(item) for item in obj]
    assert made[4].a == [1]
    assert not hasattr(made[4], "b")


def test_subclasses_of_containers() -> None:
    attributes, items = _Attributes(), _Items()
    dict.__setitem__(attributes, "a", 1)
    list.append(items, attributes)
    attributes.__dict__["extra"] = 2
    made = cross(items, _Attributes, _Items)
    assert (type(made), type(made[0])) == (_Items, _Attributes)
    assert dict(made[0]) == {"a": 1}
    assert made[0].extra == 2


def test_an_object_whose_hash_is_its_state_is_a_key() -> None:
    made = cross({_Key("a"): 1, _Key("b"): 2}, _Key)
    assert made == {_Key("a"): 1, _Key("b"): 2}


def test_cycles_through_an_object() -> None:
    config = _Config(0.1, [])
    config.layers.append(config)  # type: ignore[arg-type]
    made = cross(config, _Config)
    assert made.layers[0] is made


def test_a_subclass_of_tensor() -> None:
    tensor = torch.arange(3.0).as_subclass(_Custom)
    tensor.tag = 1  # type: ignore[attr-defined]
    made = cross(tensor, _Custom)
    assert type(made) is _Custom
    assert made.tag == 1  # type: ignore[attr-defined]
    assert made.tolist() == [0, 1, 2]
    plain = cross(tensor)
    assert isinstance(plain, Opaque)
    assert plain.args[0].tolist() == [0, 1, 2]
    assert plain.state == {"tag": 1}


def test_what_is_not_allowed_stays_opaque() -> None:
    made = cross([_Config(0.1, []), _Key("a")], _Key)
    assert isinstance(made[0], Opaque)
    assert made[0].state == {"lr": 0.1, "layers": []}
    assert made[1] == _Key("a")


def test_an_object_that_a_call_made_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"_Called is allowed.*call with arguments"):
        cross(_Called(3), _Called)


def test_a_default_dict_that_subclasses_is_refused() -> None:
    class Unusual(collections.Counter):  # type: ignore[type-arg]
        pass

    Unusual.__qualname__ = "_Unusual"
    globals()["_Unusual"] = Unusual
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        cross(Unusual("ab"), Unusual)


def test_the_classes_that_torch_was_told_are_safe_count_too() -> None:
    with torch.serialization.safe_globals([_Config, (_Key, "old.name.Key"), len]):
        found = allowed_classes([_Point])
    assert found[f"{__name__}._Config"] is _Config
    assert found["old.name.Key"] is _Key
    assert found[f"{__name__}._Point"] is _Point
    assert "builtins.len" not in found
