"""The warden: makes a worker's namespaces and root, forks it, and sees to its end.

One per worker, a fork of the zygote, outside the worker's pid namespace. It ends the worker when
the parent's end of the lifeline closes (so also when the parent dies), or at the deadline; reaps
it; removes its cgroup; and goes. It never reads a byte that a worker wrote.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import NoReturn

from sandbox import confine, kernel, worker
from sandbox.layers import Place, Plan, Record

_GRACE = 0.5  # seconds that the parent has to act on the deadline before the warden does
_REMOVE_TRIES = 20
_REMOVE_PAUSE = 0.01  # seconds


@dataclass(frozen=True)
class Order:
    """What the parent asks for one worker; its descriptors are in the order of the fields."""

    channel: int
    lifeline: int
    join: list[int]  # cgroup.procs files of the worker's group
    above: list[int]  # the folders in which the group's own folders lie
    groups: list[str]  # their names there
    disabled: frozenset[str]
    spare: bool  # nobody is waiting for this worker yet


def main(order: Order, plan: Plan) -> NoReturn:
    """In the zygote's child. Never returns, whatever happens."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        kernel.close_all_but(
            {0, 1, 2, plan.proc, order.channel, order.lifeline, *order.join, *order.above}
        )
        place = Place(plan, Record(), order.disabled, order.channel, order.join, order.spare)
        confine.confine(confine.IN_THE_WARDEN, place)
        pid = os.fork()
        if pid == 0:
            worker.main(place)
        _watch(order, pid)
    finally:
        os._exit(0)


def _watch(order: Order, pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.close(order.channel)  # the worker alone holds its end: its death is an end of file
    for fd in order.join:
        os.close(fd)
    lifeline = socket.socket(fileno=order.lifeline)
    try:
        with contextlib.suppress(OSError):  # the parent is gone: the wait will see it
            socket.send_fds(lifeline, [json.dumps({"pid": pid}).encode()], [pidfd])
        late = _until_end(lifeline, pidfd)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    with contextlib.suppress(OSError):
        lifeline.send(_obituary(status, usage, late))
        while lifeline.recv(64):  # the parent may still want to read the group's counters
            pass
    _remove(order)


def _until_end(lifeline: socket.socket, pidfd: int) -> bool:
    """Until the worker has died, the parent has let go (False), or it is too late (True)."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    deadline: float | None = None
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        events = dict(poll.poll(timeout))
        if not events:
            return True
        if pidfd in events:
            return False
        try:
            message = lifeline.recv(64)
        except OSError:
            return False
        if not message:
            return False
        deadline = float(message) + _GRACE


def _obituary(status: int, usage: resource.struct_rusage, late: bool) -> bytes:
    facts = {
        "status": status,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
        "late": late,
    }
    return json.dumps(facts).encode()


def _remove(order: Order) -> None:
    """The parent does so too; this is for a parent that was killed."""
    for above, name in zip(order.above, order.groups, strict=True):
        for _ in range(_REMOVE_TRIES):
            try:
                os.rmdir(name, dir_fd=above)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    break
                time.sleep(_REMOVE_PAUSE)
            else:
                break
