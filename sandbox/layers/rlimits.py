"""Layer "rlimits": what one process may take. getrlimit(2)

Per process, so a fork bomb or shared memory goes round some of them: the cgroup and the watchdog
bound the tree. Set twice: what no worker ever needs before READY, what depends on the request
when it comes, before a byte of the input is read.
"""

from __future__ import annotations

import errno
import math
import os
import resource

from sandbox import kernel
from sandbox.layers import Place, Plan
from sandbox.limits import MIB, ResolvedLimits

_SLACK = 64 * MIB  # for the interpreter's own work over the caller's memory limit


def first_for_the_oom_killer(place: Place) -> str:
    """Where the host runs out of memory, the worker goes first. proc(5), oom_score_adj"""
    kernel.prctl(kernel.PR_SET_DUMPABLE, "PR_SET_DUMPABLE, 1", 1)
    try:
        fd = os.open("self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=place.plan.proc)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel.refused("write(oom_score_adj)", error.errno or errno.EIO) from error
    finally:
        kernel.prctl(kernel.PR_SET_DUMPABLE, "PR_SET_DUMPABLE, 0", 0)
    return ""


def never_needed(place: Place) -> str:
    for name in ("CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE"):
        _lower(name, 0)
    return "rlimits on address space, data, file size, files, processes, CPU; core 0"


def for_request(plan: Plan, limits: ResolvedLimits) -> None:
    """Address space leaves room for mapping the input twice over: only data costs memory."""
    _lower("AS", plan.address_space + 4 * limits.memory + _SLACK)
    _lower("DATA", plan.data + limits.memory + _SLACK)
    _lower("FSIZE", limits.output)
    _lower("NOFILE", max(limits.open_files, 8))
    _lower("NPROC", limits.processes)
    _lower("CPU", math.ceil(limits.cpu))


def _lower(name: str, value: int) -> None:
    kind = getattr(resource, f"RLIMIT_{name}")
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EPERM
        raise kernel.refused(f"setrlimit({name})", number) from error
