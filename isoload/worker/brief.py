"""Arguments as short text for the report: never a repr of what the file made, and never deep."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recorded import Recorded
from .stand_ins import Named
from .views import Span, View

_MAX_TEXT = 80
_MAX_ITEMS = 6
_MAX_DEPTH = 2
_MAX_BRIEF = 300

SHAPED: dict[type[Any], str] = {np.ndarray: "array"}
"""What is shown by its shape. A reader that makes tensors enters theirs."""


def brief(args: object, kwargs: object = None) -> str:
    """The arguments of a call, as they would be written in the call."""
    parts = [_show(arg, 0) for arg in args[:_MAX_ITEMS]] if isinstance(args, tuple) else []
    if isinstance(args, tuple) and len(args) > _MAX_ITEMS:
        parts.append("…")
    if isinstance(kwargs, dict):
        parts += [f"{key}={_show(value, 0)}" for key, value in list(kwargs.items())[:_MAX_ITEMS]]
    text = ", ".join(parts)
    return text if len(text) <= _MAX_BRIEF else text[: _MAX_BRIEF - 1] + "…"


def _show(value: Any, depth: int) -> str:
    kind = type(value)
    if isinstance(value, Recorded):
        return value.name if value.reference else f"<{value.name}>"
    if kind in (str, bytes, bytearray):
        cut = value[:_MAX_TEXT]
        return repr(cut) + ("…" if len(value) > len(cut) else "")
    if kind in (bool, float, complex, type(None)):
        return repr(value)
    if kind is int:
        return str(value) if value.bit_length() <= 128 else f"<int of {value.bit_length()} bits>"
    if kind is View:
        return f"<tensor {list(value.size)}>"
    if kind is Named:
        return str(value.shown)
    if kind is Span:
        return "<TypedStorage>"
    for shaped, word in SHAPED.items():
        if isinstance(value, shaped):
            return f"<{word} {list(value.shape)}>"
    if kind in (list, tuple, set, frozenset) or isinstance(value, dict):
        return _show_many(value, depth)
    if kind is type:
        return f"{value.__module__}.{value.__qualname__}"
    return f"<{kind.__name__}>"


def _show_many(value: Any, depth: int) -> str:
    if depth >= _MAX_DEPTH:
        return f"<{type(value).__name__} of {len(value)}>"
    items: list[str] = []
    for item in value:
        if len(items) >= _MAX_ITEMS:
            items.append("…")
            break
        shown = _show(item, depth + 1)
        items.append(
            f"{shown}: {_show(value[item], depth + 1)}" if isinstance(value, dict) else shown
        )
    brackets = {"list": "[]", "tuple": "()"}.get(type(value).__name__, "{}")
    return f"{brackets[0]}{', '.join(items)}{brackets[1]}"
