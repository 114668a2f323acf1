"""Policy: how far a load may go for a file, and what the host must give before it goes at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sandbox import DEFAULT_REQUIRED, LAYERS, Limits

Fallback = Literal["none", "inert", "full"]

GIB = 1 << 30


@dataclass(frozen=True)
class Policy:
    """What one load may do.

    fallback: the last reader that may be tried where torch's own `weights_only` refuses.
        "none": no other. "inert": classes that the file names become `Opaque`, and none of its
        code runs. "full": ordinary unpickling, confined, after the inert reader failed too.
    limits: memory (bytes), wall and cpu (seconds), processes, open_files, output (bytes); a field
        that is None follows the source's size and the host's memory.
    require: layers (`sandbox.LAYERS`) without which nothing is opened: IsolationError.
    allow: classes that may be rebuilt in the caller's process from plain state. Their `__init__`,
        `__setstate__` and `__reduce__` are never called.
    max_source: bytes of the largest file that is accepted: LimitError("source").
    """

    fallback: Fallback = "full"
    limits: Limits = field(default_factory=Limits)
    require: frozenset[str] = DEFAULT_REQUIRED
    allow: frozenset[type] = frozenset()
    max_source: int = 64 * GIB

    def __post_init__(self) -> None:
        if self.fallback not in get_args(Fallback):
            raise ValueError(f"fallback must be one of {get_args(Fallback)}, not {self.fallback!r}")
        if not isinstance(self.limits, Limits):
            raise TypeError(f"limits must be a Limits, not {type(self.limits).__name__}")
        object.__setattr__(self, "require", _names(self.require))
        allow = frozenset(self.allow)
        if not all(isinstance(cls, type) for cls in allow):
            raise TypeError("allow takes classes")
        object.__setattr__(self, "allow", allow)
        if not isinstance(self.max_source, int) or self.max_source <= 0:
            raise ValueError(f"max_source must be a positive number of bytes: {self.max_source!r}")

    @classmethod
    def strict(cls) -> Policy:
        """Of pickles only what `torch.load(weights_only=True)` accepts; and what holds none, as
        safetensors and .npy."""
        return cls(fallback="none")

    @classmethod
    def upload(cls) -> Policy:
        """For files that the public sends: no code of theirs is run, not even in the sandbox."""
        return cls(fallback="inert")

    @classmethod
    def third_party(cls) -> Policy:
        """The default: up to ordinary unpickling inside the sandbox."""
        return cls(fallback="full")

    def replace(self, **changes: Any) -> Policy:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)


def _names(require: Collection[str]) -> frozenset[str]:
    if isinstance(require, str):
        raise TypeError("require takes a collection of layer names, not one string")
    names = frozenset(require)
    unknown = names - frozenset(LAYERS)
    if unknown:
        raise ValueError(
            f"no such layer: {', '.join(sorted(unknown))}; there are {', '.join(LAYERS)}"
        )
    return names
