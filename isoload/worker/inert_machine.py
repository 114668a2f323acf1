"""The inert unpickler, but for torch's own objects: plain values for real, everything else as a
record of what was asked.

No module that the file names is imported, no attribute that it names is looked up on a real object,
and nothing that it asks to be called is called. What a name stands for is decided by tables. torch
need not be there.
"""

from __future__ import annotations

import argparse
import collections
import types
import uuid
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from abc import abstractmethod
from collections.abc import Mapping
from mmap import mmap
from typing import Any

import numpy as np

from .context import Context
from .machine import Machine
from .makers.arrays import build_array, build_dtype
from .makers.base import Decline, Maker
from .makers.indirect import call_partial
from .makers.standard import hashable
from .names import Names
from .reading import Damaged, Refused
from .recorded import Recorded
from .state import DYNAMIC, MAX_NAME, attributes, build_uuid, dynamic_name, merge_slots

_PROTOCOL_3 = 3
_RENAMED = {"torch.tensor": "torch._tensor", "__builtin__": "builtins", "copy_reg": "copyreg"}
_NO_VALUE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a constructor may raise over arguments that it did not foresee."""


class InertMachine(Machine):
    """Reads pickles of one file. `names`: what names stand for; `makers`: the value constructors,
    by name."""

    names: Names
    makers: Mapping[str, Maker]

    def __init__(self, data: bytes | mmap, context: Context, position: int = 0) -> None:
        super().__init__(data, position)
        self.context = context

    @abstractmethod
    def nested(self, data: bytes) -> object:
        """The object in bytes that torch.save wrote."""

    @abstractmethod
    def note_device(self, tensor: Any, device: str) -> None:
        """Remember where a tensor was saved."""

    def warn(self, message: str) -> None:
        self.context.reading.warn(message)

    # names

    def find_global(self, module: str, name: str) -> object:
        if len(module) + len(name) > MAX_NAME:
            raise Damaged("a global's name is longer than any real one")
        if self.protocol < _PROTOCOL_3:
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            module = IMPORT_MAPPING.get(module, module)
        full = f"{_RENAMED.get(module, module)}.{name}"
        self.context.note_global(full)
        return self.reference(full)

    def find_extension(self, code: int) -> object:
        name = f"copyreg.extension_{code}"
        self.context.note_global(name)
        return self.reference(name)

    def reference(self, name: str) -> object:
        """What a name stands for, the same each time: a known value, or a record of the name."""
        if len(name) > MAX_NAME:
            raise Damaged("a global's name is longer than any real one")
        known = self.context.references
        if name not in known:
            found = self.names.find(name)
            known[name] = Recorded(name, reference=True) if found is None else found
        return known[name]

    # calls

    def call(self, function: object, args: object, kwargs: object = None) -> object:
        if type(args) is not tuple or (kwargs is not None and type(kwargs) is not dict):
            raise Damaged("it calls something with arguments that are no tuple")
        if kwargs and not all(type(key) is str for key in kwargs):
            raise Damaged("it calls something with a keyword that is no string")
        if isinstance(function, Recorded) and not function.reference:
            return self._call_instance(function, args, kwargs)
        name = self._name(function)
        maker = self.makers.get(name) if not kwargs else None
        if maker is not None:
            try:
                return maker(self, args)
            except Decline:
                pass
            except _NO_VALUE:
                self.warn(f"{name} could not be made of its arguments: it is recorded")
        return self.record(name, args, kwargs)

    def _call_instance(self, function: Recorded, args: Any, kwargs: Any) -> object:
        if function.name == "functools.partial":
            try:
                return call_partial(self, function.state, args)
            except Decline:
                pass
        if function.name in DYNAMIC:
            return self.record(dynamic_name(function), args, kwargs)
        return self.record(f"{function.name}()", (function, *args), kwargs)

    def _name(self, function: object) -> str:
        if isinstance(function, Recorded):
            return function.name
        known = self.names.name_of(function)
        if known is None:
            raise Damaged(f"it calls a {type(function).__name__}")
        return known[1]

    def record(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, object] | None = None
    ) -> Recorded:
        """An instance that only says what it was asked to be made of."""
        self.context.note_call(name, args, kwargs)
        return Recorded(name, args, kwargs)

    # what is put into an object

    def build(self, target: object, state: object) -> object:
        try:
            return self._build(target, state)
        except Decline:
            raise Damaged(
                f"the state of a {type(target).__name__} is not what it should be"
            ) from None

    def _build(self, target: Any, state: Any) -> object:
        if isinstance(target, Recorded):
            self._build_recorded(target, state)
        elif type(target) is np.ndarray:
            return self._build_array(target, state)
        elif isinstance(target, np.dtype):
            build_dtype(target, state)
        elif type(target) is uuid.UUID:
            build_uuid(target, state)
        elif type(target) in _WITH_ATTRIBUTES:
            vars(target).update(attributes(state))
        elif state is not None:
            self.context.note_call(f"{type(target).__name__}.__setstate__", (state,), None)
        return target

    def _build_array(self, array: np.ndarray[Any, Any], state: Any) -> object:
        build_array(array, state)
        return array

    def _build_recorded(self, target: Recorded, state: Any) -> None:
        if target.reference:  # state for a class: nothing is changed by it
            self.context.note_call(f"{target.name}.__setstate__", (state,), None)
            return
        plain = merge_slots(state)
        if isinstance(target.state, dict) and isinstance(plain, dict):
            plain = {**target.state, **plain}
        target.state = plain

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) in (list, collections.deque):
            target.extend(items)
        elif type(target) is set:
            target.update(map(_key, items))
        elif isinstance(target, Recorded) and not target.reference:
            target.items.extend(items)
        else:
            raise Damaged(f"it adds items to a {type(target).__name__}")

    def freeze(self, items: list[Any]) -> object:
        return frozenset(map(_key, items))

    def set_items(self, target: Any, flat: list[Any]) -> None:
        if len(flat) % 2:
            raise Damaged("a mapping has a key without a value")
        pairs = zip(flat[::2], flat[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                target[key if type(key) is str else _key(key)] = value
        elif isinstance(target, Recorded) and not target.reference:
            target.pairs.extend(pairs)
        else:
            raise Damaged(f"it sets items of a {type(target).__name__}")


_WITH_ATTRIBUTES = (
    *(collections.OrderedDict, collections.Counter),
    *(types.SimpleNamespace, argparse.Namespace),
)


def _key(key: Any) -> Any:
    try:
        return hashable(key)
    except Decline:
        raise Refused("a key is a tuple nested too deep to be hashed") from None
