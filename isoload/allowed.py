"""Rebuilding an object of a class that the caller allowed, from plain state.

The rule. The class is the caller's, found by its full name in what the caller listed; nothing is
imported. None of `__new__`, `__init__`, `__setstate__`, `__reduce__`, `__setattr__`, `append` or
`__setitem__` that the class defines is called: the file chose their arguments. Instead

- an Enum's member is looked up by the value that it was saved with;
- a subclass of torch.Tensor is made over the plain tensor that it is, by `Tensor._make_subclass`;
- a namedtuple, or another subclass of tuple, str, int, float or bytes, is made by that builtin's
  `__new__`;
- a subclass of list, dict, OrderedDict or set is made by that builtin's, and filled by its methods;
- any other is made by `object.__new__`, which only takes arguments that are not there;
- attributes go into the instance's `__dict__`, and slots through the descriptors of the class.

What does not fit raises CheckpointError: an object that was made by a call with arguments, a state
that is no mapping, a class whose memory only its own `__new__` lays out.
"""

from __future__ import annotations

import enum
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from sandbox import printable

from .errors import CheckpointError

_FIXED: tuple[type, ...] = (tuple, str, int, float, bytes)
_FILLED: tuple[type, ...] = (OrderedDict, dict, list, set)


def allowed_classes(allow: Iterable[type] = ()) -> dict[str, type]:
    """The classes that may be rebuilt, by full name: the policy's, and those that the caller
    registered with `torch.serialization.add_safe_globals`. Functions cannot be rebuilt, so they are
    left out."""
    found = {_full_name(cls): cls for cls in allow}
    for entry in torch.serialization.get_safe_globals():
        cls, name = entry if isinstance(entry, tuple) else (entry, None)
        if isinstance(cls, type):
            found[name if isinstance(name, str) else _full_name(cls)] = cls
    return found


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def make(
    cls: type,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] = types.MappingProxyType({}),
    items: Sequence[Any] = (),
) -> Any:
    """The object without its state; `fill` completes it. `items` are those of a fixed builtin."""
    if issubclass(cls, enum.Enum):
        return _member(cls, args)
    if issubclass(cls, torch.Tensor):
        return _tensor(cls, args)
    base = next((b for b in (*_FIXED, *_FILLED) if issubclass(cls, b)), None)
    if base in _FIXED and base is not None:
        return _fixed(cls, base, args, kwargs, items)
    if base is None and (args or kwargs):
        _refuse(cls, "it was made by a call with arguments, and only plain state is rebuilt")
    if issubclass(cls, defaultdict | Counter | deque) or (base is not None and kwargs):
        _refuse(
            cls, f"a {cls.__mro__[-2].__name__} of that kind cannot be rebuilt from plain state"
        )
    maker: Any = base or object
    try:
        return maker.__new__(cls)
    except TypeError as error:
        _refuse(cls, str(error))


def fill(obj: Any, state: Any, items: Iterable[Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Give an object that `make` made its state and its contents."""
    cls = type(obj)
    if isinstance(obj, enum.Enum):
        return
    if state is not None:
        _set_state(obj, cls, state)
    if isinstance(obj, dict):
        base = OrderedDict if isinstance(obj, OrderedDict) else dict
        for key, value in pairs:
            base.__setitem__(obj, key, value)
    elif isinstance(obj, list):
        list.extend(obj, items)
    elif isinstance(obj, set):
        set.update(obj, items)


def _member(cls: type[enum.Enum], args: Sequence[Any]) -> enum.Enum:
    for member in cls.__members__.values():
        if len(args) == 1 and type(member._value_) is type(args[0]) and member._value_ == args[0]:
            return member
    _refuse(cls, "it has no member of the saved value")


def _tensor(cls: type, args: Sequence[Any]) -> Any:
    if len(args) != 1 or type(args[0]) not in (torch.Tensor, torch.nn.Parameter):
        _refuse(cls, "the tensor that it is underneath is not there")
    return torch.Tensor._make_subclass(cls, args[0], args[0].requires_grad)


def _fixed(
    cls: type, base: Any, args: Sequence[Any], kwargs: Mapping[str, Any], items: Sequence[Any]
) -> Any:
    content: Any = list(items) or list(args)
    if kwargs:
        _refuse(cls, "it was made by a call with keywords")
    if base is tuple:
        fields = getattr(cls, "_fields", None)
        if fields is None and len(content) == 1 and isinstance(content[0], list | tuple):
            content = content[0]  # tuple's own call: one iterable
        if fields is not None and len(content) != len(fields):
            _refuse(cls, f"it has {len(fields)} fields, and the file gives {len(content)}")
        return tuple.__new__(cls, content)
    if len(content) != 1 or type(content[0]) is not base:
        _refuse(cls, f"its {base.__name__} is not there")
    return base.__new__(cls, content[0])


def _set_state(obj: Any, cls: type, state: Any) -> None:
    own, slots = state, None
    if isinstance(state, tuple) and len(state) == 2:
        own, slots = state
    for part in (own, slots):
        if part is not None and type(part) is not dict:
            _refuse(cls, f"its state is a {type(part).__name__}, not a mapping of attributes")
    if own:
        try:
            attributes = object.__getattribute__(obj, "__dict__")
        except AttributeError:
            slots = {**own, **(slots or {})}
        else:
            attributes.update(own)
    for name, value in (slots or {}).items():
        _set_slot(obj, cls, name, value)


def _set_slot(obj: Any, cls: type, name: Any, value: Any) -> None:
    for base in cls.__mro__:
        member = base.__dict__.get(name)
        if type(member) is types.MemberDescriptorType:
            member.__set__(obj, value)
            return
    _refuse(cls, f"it has no slot {printable(str(name), 80)}")


def _refuse(cls: type, why: str) -> NoReturn:
    raise CheckpointError(f"{_full_name(cls)} is allowed but cannot be rebuilt: {why}")
