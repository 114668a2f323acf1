"""What confinement was had: the layers, their states, and the required set.

Plain data that the caller reads and reports. No mechanism and no system call belongs here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from enum import Enum

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

DEFAULT_REQUIRED: frozenset[str] = frozenset(
    {"network", "filesystem", "process", "privileges", "memory"}
)


class State(Enum):
    ENFORCED = "enforced"
    PARTIAL = "partial"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Layer:
    """One layer as a worker got it. `cause` and `remedy` are for people, and empty when enforced
    (an enforced layer may still have a cause: a known limit that the reader should hear of)."""

    name: str
    state: State
    mechanism: str
    cause: str = ""
    remedy: str = ""

    def satisfies(self) -> bool:
        """Is this enough where the layer is required?

        Half a layer is none, except memory, whose weaker form (a watchdog) is accepted.
        """
        return self.state is State.ENFORCED or (
            self.name == "memory" and self.state is State.PARTIAL
        )


@dataclass(frozen=True)
class Isolation:
    """The layers in the order of `LAYERS`."""

    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def missing(self, require: Collection[str] = DEFAULT_REQUIRED) -> tuple[Layer, ...]:
        """The required layers that were not had."""
        return tuple(
            layer for layer in self.layers if layer.name in require and not layer.satisfies()
        )

    def to_dict(self) -> dict[str, dict[str, str]]:
        """JSON-ready: name → state, mechanism, cause, remedy."""
        return {
            layer.name: {
                key: value.value if isinstance(value, State) else value
                for key, value in asdict(layer).items()
                if key != "name"
            }
            for layer in self.layers
        }


def check_required(require: Collection[str]) -> frozenset[str]:
    """The set of required layers, or ValueError for a name that is no layer."""
    unknown = sorted(set(require) - set(LAYERS))
    if unknown:
        raise ValueError(f"no such layer: {', '.join(unknown)}; layers are {', '.join(LAYERS)}")
    return frozenset(require)
