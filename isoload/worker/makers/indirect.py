"""The roundabout ways in which pickle names a class or makes an instance: emulated on records only.

`getattr` on a recorded class names a nested class; `copyreg` and `functools.partial` make
instances. Nothing is looked up on a real object, and nothing real is called.
"""

from __future__ import annotations

from typing import Any

from ..recorded import Recorded
from .base import Args, Decline, Owner, Table, want

INDIRECT = Table()


@INDIRECT("builtins.getattr")
def _getattr(owner: Owner, args: Args) -> object:
    want(len(args) == 2 and type(args[1]) is str)
    target, attribute = args
    if isinstance(target, Recorded) and target.reference:
        return owner.reference(f"{target.name}.{attribute}")
    known = owner.names.name_of(target)
    want(known is not None and known[0] == "global")
    assert known is not None
    return owner.reference(f"{known[1]}.{attribute}")


@INDIRECT("copyreg._reconstructor")
def _reconstructor(owner: Owner, args: Args) -> object:
    """What protocols 0 and 1 write: a class, its builtin base, and the value of that base."""
    want(len(args) == 3)
    cls, _, value = args
    made = owner.call(cls, () if value is None else (value,))
    if not isinstance(made, Recorded) or value is None:
        return made
    return fill(made, value)


def fill(made: Recorded, value: Any) -> Recorded:
    """A subclass of a container: what it holds goes where items and pairs are recorded."""
    if isinstance(value, dict):
        made.args = ()
        made.pairs.extend(value.items())
    elif type(value) in (list, tuple, set, frozenset):
        made.args = ()
        made.items.extend(value)
    return made


@INDIRECT("copyreg.__newobj__")
def _newobj(owner: Owner, args: Args) -> object:
    want(len(args) >= 1)
    return owner.call(args[0], args[1:])


@INDIRECT("copyreg.__newobj_ex__")
def _newobj_ex(owner: Owner, args: Args) -> object:
    want(len(args) == 3 and type(args[1]) is tuple and type(args[2]) is dict)
    return owner.call(*args)


def call_partial(owner: Owner, state: Any, args: Args) -> object:
    """Call a recorded functools.partial: how protocol 2 writes keyword arguments to __new__."""
    want(type(state) is tuple and len(state) >= 3)
    function, bound, kwargs = state[:3]
    want(type(bound) is tuple and (kwargs is None or isinstance(kwargs, dict)))
    want(isinstance(function, Recorded) and function.reference)
    if function.name.endswith(".__new__") and bound:
        return owner.call(bound[0], (*bound[1:], *args), kwargs)
    raise Decline
