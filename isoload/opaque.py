"""Opaque: what stands for an object that is neither a tensor nor plain data. It holds, and does
nothing.

Nothing here resolves a name, calls what an Opaque holds, or looks at a class that a file named.
"""

from __future__ import annotations

from typing import Any

import torch

from sandbox import printable

from .errors import CheckpointError

_SHOWN = 80
_SCRIPT = "__torch__."
"""How TorchScript names its classes."""


class Opaque:
    """An object of a class that the file named, as data.

    name: "package.module.Class" args, kwargs: what the file wanted the class called with state: its
    attributes, usually a dict; None if it had none items: what it held: a list if its class was a
    list, tuple, set or scalar, a dict if it was a mapping reference: the file referred to the class
    or function itself, not to an instance

    Two Opaques are equal only if they are the same object.
    """

    __slots__ = ("args", "items", "kwargs", "name", "reference", "state")

    def __init__(
        self,
        name: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        state: Any = None,
        items: Any = None,
        *,
        reference: bool = False,
    ) -> None:
        self.name = name
        self.args = args
        self.kwargs = {} if kwargs is None else kwargs
        self.state = state
        self.items = items
        self.reference = reference

    def __repr__(self) -> str:
        kind = "reference" if self.reference else "object"
        return f"<Opaque {kind} {printable(self.name, _SHOWN)}>"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of a pickled nn.Module: parameters and persistent buffers, flat, by dotted
        names.

        What torch's own `state_dict` makes of the module, but for overridden `state_dict` methods,
        hooks and `_metadata`; of a TorchScript module, whose file does not tell them apart, with
        its other tensors. Raises ValueError if this is no module.
        """
        if not is_module(self):
            raise ValueError(f"{self!r} is no pickled nn.Module: it has no _parameters")
        return _module_weights(self)


def is_module(value: Any) -> bool:
    """Whether this is a pickled nn.Module, or a module of a TorchScript archive."""
    if not isinstance(value, Opaque) or value.reference or not isinstance(value.state, dict):
        return False
    if value.name.startswith(_SCRIPT):
        return "training" in value.state
    return all(isinstance(value.state.get(part), dict) for part in ("_parameters", "_modules"))


def _module_weights(root: Opaque) -> dict[str, torch.Tensor]:
    """Depth first, as nn.Module does; a module that holds itself is not entered again."""
    found: dict[str, torch.Tensor] = {}
    stack: list[tuple[Opaque, str, frozenset[int]]] = [(root, "", frozenset())]
    visits = 0
    while stack:
        module, prefix, above = stack.pop()
        visits += 1
        if visits > MAX_MODULES or len(above) > MAX_DEPTH:
            raise CheckpointError(f"{root!r} nests or shares its modules without end")
        own, modules = _script_parts(module) if _is_script(module) else _module_parts(module)
        for name, value in own.items():
            tensor = _tensor(value)
            if tensor is not None:
                found[f"{prefix}{name}"] = tensor
        inside = above | {id(module)}
        stack += [
            (child, f"{prefix}{name}.", inside)
            for name, child in reversed(modules.items())
            if is_module(child) and id(child) not in inside
        ]
    return found


def _tensor(value: Any) -> torch.Tensor | None:
    """A tensor, or the plain one underneath an instance of a subclass that the file named."""
    if isinstance(value, Opaque) and len(value.args) == 1 and not value.kwargs:
        value = value.args[0]
    return value if isinstance(value, torch.Tensor) else None


def _is_script(module: Opaque) -> bool:
    return module.name.startswith(_SCRIPT)


def _script_parts(module: Opaque) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """TorchScript keeps parameters, buffers, attributes and modules in one mapping."""
    return module.state, module.state


def _module_parts(module: Opaque) -> tuple[dict[Any, Any], dict[Any, Any]]:
    state = module.state
    transient = state.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set | frozenset | list) else ()
    buffers = state.get("_buffers")
    buffers = buffers if isinstance(buffers, dict) else {}
    kept = {name: value for name, value in buffers.items() if name not in transient}
    return {**state["_parameters"], **kept}, state["_modules"]


def find_state_dict(obj: Any, key: str | None = None) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint, flat: of the object itself, under `key`, or under the usual
    keys.

    `key` is a key of the object, or several joined by dots. Without it: the object if it is a
    mapping of tensors or a pickled module; else what lies under the first of `USUAL_KEYS` that
    holds weights; else the one entry that does. Raises CheckpointError where there is none, or more
    than one: the message lists them.
    """
    if key is not None:
        return _under(obj, key)
    found = _search(obj, "", MAX_NESTING)
    if not found:
        raise CheckpointError(f"no weights were found in {_what(obj)}: name their place by key=")
    if len(found) > 1:
        places = ", ".join(printable(place, _SHOWN) for place, _ in found[:_LISTED])
        more = ", …" if len(found) > _LISTED else ""
        raise CheckpointError(f"weights lie in several places: pick one by key=: {places}{more}")
    return found[0][1]


def _under(obj: Any, key: str) -> dict[str, torch.Tensor]:
    value = _lookup(obj, key)
    if value is None:
        known = ", ".join(printable(name, _SHOWN) for name in [*(_entries(obj) or {})][:_LISTED])
        raise CheckpointError(f"there is no {key!r} in {_what(obj)}; it has: {known or 'nothing'}")
    found = _search(value, key, MAX_NESTING)
    if len(found) != 1:
        inner = ", ".join(printable(place, _SHOWN) for place, _ in found[:_LISTED])
        raise CheckpointError(
            f"{key!r} holds no weights" if not found else f"{key!r} holds several: {inner}"
        )
    return found[0][1]


def _lookup(obj: Any, key: str) -> Any:
    """The value under a key that may itself contain dots: the longest that fits goes first."""
    entries = _entries(obj)
    if entries is None:
        return None
    if key in entries:
        return entries[key]
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:cut])
        if head in entries:
            found = _lookup(entries[head], ".".join(parts[cut:]))
            if found is not None:
                return found
    return None


def _search(value: Any, place: str, depth: int) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Every place below with weights, or the usual one alone."""
    if is_module(value):
        weights = value.state_dict()
        return [(place, weights)] if weights else []
    entries = _entries(value)
    if not entries or depth == 0:
        return []
    known = {name: _tensor(item) for name, item in entries.items()}
    tensors = {name: tensor for name, tensor in known.items() if tensor is not None}
    others = {n: item for n, item in entries.items() if n not in tensors and _entries(item)}
    if tensors and not others:
        return [(place, tensors)]
    for name in USUAL_KEYS:
        found = _search(others[name], _join(place, name), depth - 1) if name in others else []
        if found:
            return found
    below = [
        found
        for name, item in others.items()
        if name not in UNUSUAL_KEYS
        for found in _search(item, _join(place, name), depth - 1)
    ]
    if any(tensor.dim() for tensor in tensors.values()):
        below.insert(0, (place, tensors))
    return below


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _entries(value: Any) -> dict[str, Any] | None:
    """What a container or an object holds, by name."""
    if isinstance(value, Opaque):
        if value.reference:
            return None
        value = value.items or value.state
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if isinstance(name, str)}
    if isinstance(value, list | tuple) and len(value) <= _LONG:
        return {str(position): item for position, item in enumerate(value)}
    return None


def _what(obj: Any) -> str:
    return repr(obj) if isinstance(obj, Opaque) else f"the {type(obj).__name__}"


USUAL_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema", "model_weights", "weights"),
    *("params_ema", "params"),
)
"""Where training scripts put the weights, best first."""

UNUSUAL_KEYS = frozenset(
    f"{name}{end}"
    for name in ("optimizer", "optimizers", "optim", "scheduler", "lr_scheduler", "lr_schedulers")
    for end in ("", "_state", "_state_dict", "_states")
) | frozenset(("scaler", "grad_scaler", "rng_state", "cuda_rng_state", "callbacks", "loops"))
"""Where tensors are not weights."""

MAX_MODULES = 1_000_000
"""Modules that one state dict may visit: a module that is shared is visited once for each name."""
MAX_DEPTH = 1_000
"""Modules inside one another."""
MAX_NESTING = 6
"""Containers inside one another, down to the weights."""
_LONG = 1_000
_LISTED = 20
