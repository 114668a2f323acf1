"""What a worker is confined by: each layer's state on this host, with the cause and the remedy.

Plain data. Nothing here applies a layer or looks at the host.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass


class State(enum.Enum):
    """How far a layer holds on this host."""

    ENFORCED = "enforced"
    PARTIAL = "partial"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Layer:
    """One confinement mechanism and what came of it; ``cause`` and ``remedy`` where it is short."""

    name: str
    state: State
    mechanism: str
    cause: str = ""
    remedy: str = ""


LAYERS: tuple[str, ...] = (
    "descriptors",
    "user",
    "network",
    "process",
    "filesystem",
    "landlock",
    "privileges",
    "rlimits",
    "cgroup",
    "memory",
)
DEFAULT_REQUIRED = frozenset({"network", "filesystem", "process", "privileges", "memory"})


@dataclass(frozen=True)
class Isolation:
    """The layers of one worker, in the order of ``LAYERS``."""

    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def missing(self, require: Collection[str]) -> tuple[Layer, ...]:
        """The required layers that are not held; ``memory`` is held by its partial form too."""
        return tuple(
            layer
            for layer in self.layers
            if layer.name in require
            and layer.state is not State.ENFORCED
            and not (layer.name == "memory" and layer.state is State.PARTIAL)
        )

    def to_dict(self) -> dict[str, dict[str, str]]:
        """JSON-ready: layer name → state, mechanism, cause, remedy."""
        return {
            layer.name: {
                "state": layer.state.value,
                "mechanism": layer.mechanism,
                "cause": layer.cause,
                "remedy": layer.remedy,
            }
            for layer in self.layers
        }
