"""The state that BUILD gives to an object, and the names of classes that a file makes by value."""

from __future__ import annotations

import uuid
from typing import Any

from .makers import Decline
from .recorded import Recorded

MAX_NAME = 1_000
"""Characters of a global's name: no real one comes near it."""

DYNAMIC = {
    "cloudpickle.cloudpickle._make_skeleton_class": 1,
    "cloudpickle.cloudpickle._make_skeleton_enum": 1,
    "cloudpickle.cloudpickle_fast._make_skeleton_class": 1,
    "cloudpickle._make_skeleton_class": 1,
    "dill._dill._create_type": 1,
    "dill._dill._create_namedtuple": 0,
    "dill.dill._create_type": 1,
    "dill.dill._create_namedtuple": 0,
    "builtins.type": 0,
    "collections.namedtuple": 0,
}
"""Functions that make a class by value, and which argument is its name."""


def attributes(state: Any) -> dict[str, Any]:
    merged = merge_slots(state)
    if merged is None:
        return {}
    if not isinstance(merged, dict) or not all(type(key) is str for key in merged):
        raise Decline
    return merged


def merge_slots(state: Any) -> Any:
    """The state of a class with __slots__ is a pair: its dict (or None), and its slots."""
    if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
        plain, slots = state
        if plain is None or type(plain) is dict:
            return {**(plain or {}), **slots}
    return state


def build_uuid(target: uuid.UUID, state: Any) -> None:
    number = attributes(state).get("int")
    if type(number) is not int or not 0 <= number < 1 << 128:
        raise Decline
    object.__setattr__(target, "int", number)


def dynamic_name(maker: Recorded) -> str:
    """The name of the class that such a call makes: with the module that its arguments name."""
    index = DYNAMIC[maker.name]
    name = maker.args[index] if len(maker.args) > index else None
    module: object = "__main__"
    for arg in maker.args[index + 1 :]:
        if isinstance(arg, dict) and "__module__" in arg:
            module = arg["__module__"]
        elif type(arg) is str and maker.name.endswith("_create_namedtuple"):
            module = arg
    if type(name) is not str or type(module) is not str or len(name) + len(module) > MAX_NAME:
        return f"{maker.name}()"
    return f"{module}.{name}"
