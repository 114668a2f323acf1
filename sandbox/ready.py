"""What a worker's READY and its cgroup come to, in words for the caller: an Isolation.

The worker says what the kernel refused; why, and what to do about it, is found out here, in the
parent, which can still look at the host.
"""

from __future__ import annotations

import functools

from sandbox.causes import explain
from sandbox.isolation import LAYERS, Isolation, Layer, State
from sandbox.layers import Record, watchdog


@functools.lru_cache(maxsize=16)
def isolation_of(
    ready: bytes, cgroup: Layer, has_memory: bool, disabled: frozenset[str]
) -> Isolation:
    """The layers in words. Workers of one host say the same: cached."""
    record = Record.decode(ready)
    layers: list[Layer] = []
    for name in LAYERS:
        if name == "memory":
            layers.append(_memory(cgroup, layers[-1], has_memory, "memory" in disabled))
            continue
        outcome = record[name]
        if name == "cgroup" and outcome.state is State.ENFORCED:
            layers.append(cgroup)
            continue
        cause, remedy = " ".join(outcome.caveats), ""
        if outcome.state is not State.ENFORCED:
            cause, remedy = explain(name, outcome.step, outcome.errno)
        layers.append(Layer(name, outcome.state, ", ".join(outcome.mechanisms), cause, remedy))
    return Isolation(tuple(layers))


def _memory(cgroup: Layer, joined: Layer, has_memory: bool, disabled: bool) -> Layer:
    if disabled:
        return Layer("memory", State.UNAVAILABLE, "", *explain("memory", "disabled", 0))
    if has_memory and joined is cgroup:
        return Layer("memory", State.ENFORCED, f"memory limit of {cgroup.mechanism}")
    cause = joined.cause or "the group has no memory controller"
    return watchdog.layer(cause, joined.remedy)
