"""The exceptions of this package, and the printing of text that a worker wrote.

    SandboxError            the sandbox could not do its work; every error below is one
    ├ IsolationError        a required layer cannot be had here; .missing has cause and remedy
    ├ LimitError            a limit ended the worker; .limit names it, .allowed is what was allowed
    ├ WorkerError           the worker failed, died or broke the protocol; .signal, .detail
    └ ClosedError           the sandbox was closed

Nothing that a worker wrote reaches a message before `printable` has been over it.
"""

from __future__ import annotations

import signal
import unicodedata

from sandbox.isolation import Layer

DETAIL_LIMIT = 2000  # characters of a worker's own words that an error will carry

# Zs: spaces other than U+0020 look like it; Cf: bidi overrides and joiners; Cc: terminal controls;
# Zl, Zp: line breaks; Cs: lone surrogates; Co, Cn: private use, unassigned.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


class SandboxError(Exception):
    """The sandbox could not do its work."""


class IsolationError(SandboxError):
    """A required layer cannot be had on this host."""

    def __init__(self, missing: tuple[Layer, ...]) -> None:
        self.missing = missing
        lines = [
            f"{layer.name}: {layer.cause or 'not enforced'}"
            + (f" Remedy: {layer.remedy}" if layer.remedy else "")
            for layer in missing
        ]
        super().__init__(
            "this host cannot give a required isolation layer, so nothing was run. "
            + " | ".join(lines)
        )

    def __reduce__(self) -> tuple[type[IsolationError], tuple[tuple[Layer, ...]]]:
        return IsolationError, (self.missing,)


class LimitError(SandboxError):
    """A limit ended the worker. `limit` is a field name of Limits; `allowed` its value."""

    def __init__(self, limit: str, allowed: float, detail: str = "") -> None:
        self.limit = limit
        self.allowed = allowed
        self.detail = detail
        super().__init__(
            f"the worker went over its limit of {_amount(limit, allowed)}"
            + (f": {detail}" if detail else "")
            + f"; raise Limits({limit}=...) if this input deserves more"
        )

    def __reduce__(self) -> tuple[type[LimitError], tuple[str, float, str]]:
        return LimitError, (self.limit, self.allowed, self.detail)


class WorkerError(SandboxError):
    """The worker failed, died or broke the protocol.

    `signal` is the signal that ended it, if one did. `detail` is printable text, part of which a
    hostile worker may have chosen.
    """

    def __init__(self, detail: str, signal: int | None = None) -> None:
        self.detail = detail
        self.signal = signal
        super().__init__(detail)

    def __reduce__(self) -> tuple[type[WorkerError], tuple[str, int | None]]:
        return WorkerError, (self.detail, self.signal)


class ClosedError(SandboxError):
    """The sandbox was closed, before the call or while it ran."""


def printable(text: str, limit: int = DETAIL_LIMIT) -> str:
    """`text` with nothing in it that a terminal or a log could take for anything but text.

    Controls, escapes, line breaks, bidi marks, surrogates and unassigned characters become
    backslash escapes; what is over `limit` characters is cut.
    """
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    length = 0
    for character in text[: limit + 1]:
        if character != " " and unicodedata.category(character) in _ESCAPED_CATEGORIES:
            shown = character.encode("unicode_escape").decode("ascii")
        else:
            shown = character
        length += len(shown)
        if length > limit:
            out.append("…")
            break
        out.append(shown)
    return "".join(out)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _amount(limit: str, allowed: float) -> str:
    unit = {"memory": "bytes", "output": "bytes", "wall": "s", "cpu": "s of CPU time"}.get(
        limit, limit.replace("_", " ")
    )
    name = {"wall": "time", "cpu": "time"}.get(limit, limit)
    return f"{allowed:g} {unit}" if name == "time" else f"{int(allowed)} {unit}"
