"""What the names in a file stand for, and the names of values: in a worker with torch by its own
objects, in one without by what stands in for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isoload.torch_facts import Facts
from isoload.values import CONSTANTS, GLOBALS

from .stand_ins import Named

_GLOBAL_NAMES = {id(value): name for name, value in GLOBALS.items()}
_CONSTANT_NAMES = {id(value): name for name, value in CONSTANTS.items()}


@dataclass(frozen=True)
class Names:
    """`find`: a global's full name → its value, or None. `name_of`: a value → its kind and name (as
    `manifest.Named` has them), or None. `types`: those all of whose values have a name."""

    find: Callable[[str], object]
    name_of: Callable[[object], tuple[str, str] | None]
    types: frozenset[type]


def light_names(facts: Facts) -> Names:
    """Those of a worker that has no torch."""
    known: dict[str, object] = dict(GLOBALS)
    for name, shown in facts.globals.items():
        known[name] = Named("global", name, shown)
    for name, (kind, short) in facts.constants.items():
        known[name] = Named(kind, short, f"<{kind}>")

    def find(name: str) -> object:
        found = known.get(name)
        if found is not None:
            return found
        module, _, last = name.rpartition(".")
        if module.startswith("torch") and last in facts.storages:
            return Named("storage_type", last, "<StorageType>")
        return None

    return Names(find, _name_of, frozenset({Named, type(Ellipsis), type(NotImplemented)}))


def _name_of(value: object) -> tuple[str, str] | None:
    if type(value) is Named:
        return value.kind, value.name
    name = _GLOBAL_NAMES.get(id(value))
    if name is not None:
        return "global", name
    name = _CONSTANT_NAMES.get(id(value))
    return None if name is None else ("constant", name)
