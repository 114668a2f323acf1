"""What a run gives its caller: the reply, and what it took. Plain data, measured from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sandbox.isolation import Isolation

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What one run took, measured from outside.

    wall    seconds from asking for a worker to its reply
    cpu     seconds of CPU time
    memory  bytes at the peak; 0 where nothing on this host tells
    """

    wall: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Reply:
    """What a worker answered. The caller owns `fds`, and checks them before use: see
    `check_segment`. Nothing in it is to be trusted."""

    data: bytes
    fds: list[int]
    isolation: Isolation
    usage: Usage


def cpu_of(pid: int) -> float:
    """CPU seconds of a live process. proc_pid_stat(5): utime and stime, in clock ticks."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
