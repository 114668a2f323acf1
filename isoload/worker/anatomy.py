"""What an instance of a class that nobody knows is made of, without asking it.

Instances are read through `object` and the builtins, past whatever their class overrides.
"""

from __future__ import annotations

import types
from typing import Any

from isoload import manifest as m
from isoload.bounds import MAX_NAME
from sandbox import printable

from .names import Names

_LIVE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)


def is_reference(value: Any, kind: type) -> bool:
    return issubclass(kind, type | _LIVE[0]) or kind in _LIVE


def reference(value: Any, names: Names) -> Any:
    named = names.name_of(value)
    if named is not None and named[0] == "global":
        return m.Named(*named)
    return m.Opaque(full_name(value), reference=True)


def full_name(value: Any) -> str:
    """The full name of a class, function or module, as it says itself."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    parts = [part for part in (module, name) if type(part) is str]
    return cut(".".join(parts) or type(value).__name__)


def cut(name: str) -> str:
    return printable(name, MAX_NAME - 100)


def state_of(value: Any, kind: type) -> Any:
    """The instance's attributes: its dict, or (dict, slots) where it has slots, as pickle has
    them."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = None
    slots = {}
    for cls in kind.__mro__:
        for name, member in cls.__dict__.items():
            if type(member) is types.MemberDescriptorType and cls.__module__ != "builtins":
                try:
                    slots[name] = member.__get__(value, kind)
                except AttributeError:
                    continue
    if slots:
        return (own or None, slots)
    return own or None


def fixed_content(value: Any, kind: type) -> tuple[Any, ...]:
    """What a subclass of tuple, str, int, … holds underneath."""
    for base in (tuple, frozenset):
        if issubclass(kind, base):
            return (*base.__iter__(value),)
    if issubclass(kind, str):
        return (str.__str__(value),)
    if issubclass(kind, bytes):
        return (bytes(value),)
    if issubclass(kind, int):
        return (int.__int__(value),)
    if issubclass(kind, float):
        return (float.__float__(value),)
    return ()
