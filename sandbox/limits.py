"""How much a worker may use, and the defaults that follow the input's size and the host.

Numbers only: each layer that enforces one of them lives in `layers/`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

MIB = 1 << 20
GIB = 1 << 30

_SLOWEST_INPUT = 20 * MIB  # bytes a second that a worker is expected to manage at the least
_REPLY = 64 * MIB
_REPLY_PER_BYTE = 8  # of input
_MAX_REPLY = 512 * MIB
_HOST_SHARE = 0.8  # of the host's memory: more than this ends in swapping or the host's OOM killer


@dataclass(frozen=True)
class Limits:
    """Limits of one run; None means the default that `resolved` gives.

    memory      bytes that the worker's whole tree may hold, shared memory included
    wall        seconds from asking for a worker to its complete reply
    cpu         seconds of CPU time
    processes   processes and threads at one time
    open_files  descriptors that one process may hold open
    output      bytes of any one file or segment that the worker writes, and of the reply, which
                may be no larger than 64 MiB and eight times the input, nor than 512 MiB: the
                caller's process holds and decodes it
    """

    memory: int | None = None
    wall: float | None = None
    cpu: float | None = None
    processes: int | None = None
    open_files: int | None = None
    output: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Limits.{field.name} must be a number or None, not {value!r}")
            if not 0 < value < float("inf"):
                raise ValueError(f"Limits.{field.name} must be above 0 and finite, not {value!r}")

    def resolved(self, input_bytes: int = 0) -> ResolvedLimits:
        """These limits with every field filled, for an input of `input_bytes`."""
        host = int(_host_memory() * _HOST_SHARE)
        output = 256 * MIB + 2 * input_bytes if self.output is None else int(self.output)
        wall = 30.0 + input_bytes / _SLOWEST_INPUT if self.wall is None else float(self.wall)
        return ResolvedLimits(
            memory=min(GIB + 3 * input_bytes, host) if self.memory is None else int(self.memory),
            wall=wall,
            cpu=wall if self.cpu is None else float(self.cpu),
            processes=32 if self.processes is None else int(self.processes),
            open_files=64 if self.open_files is None else int(self.open_files),
            output=output,
            reply=min(output, _REPLY + _REPLY_PER_BYTE * input_bytes, _MAX_REPLY),
        )


@functools.cache
def _host_memory() -> int:
    import psutil  # noqa: PLC0415 - a zygote knows limits too, and asks no host for them

    return int(psutil.virtual_memory().total)


@dataclass(frozen=True)
class ResolvedLimits(Limits):
    """Limits without a gap. `reply`: bytes."""

    memory: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    processes: int = 0
    open_files: int = 0
    output: int = 0
    reply: int = 0
