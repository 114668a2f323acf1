"""The zygote's care for its workers, from their birth to their death.

Each worker has a lifeline, a socket to the parent. A worker is ended when the parent's end closes
(so also when the parent dies) or at its deadline; then it is reaped, and the parent hears how it
ended. Nothing here ever reads a byte that a worker wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import time
from dataclasses import dataclass

from sandbox import channel, sentinel

_GRACE = 0.5  # seconds that the parent has to act on the deadline before the zygote does
_MESSAGE = 64  # bytes of what a parent says


@dataclass(eq=False)
class Ward:
    """One worker, as the zygote sees it."""

    pid: int
    pidfd: int
    lifeline: socket.socket
    above: list[int]  # the folders in which its cgroups lie
    groups: list[str]  # their names there
    deadline: float | None = None
    late: bool = False


class Supervisor:
    """Watches the control socket, the sentinel's, and every worker."""

    def __init__(self, control: int, guard: socket.socket) -> None:
        self._control = control
        self._guard = guard
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._poll.register(guard, select.POLLIN)
        self._by_lifeline: dict[int, Ward] = {}
        self._by_pidfd: dict[int, Ward] = {}

    def add(self, ward: Ward) -> None:
        """From here on the worker is looked after; its parent is told of it.

        Raises OSError where the sentinel has died.
        """
        self._by_lifeline[ward.lifeline.fileno()] = ward
        self._by_pidfd[ward.pidfd] = ward
        self._poll.register(ward.lifeline, select.POLLIN)
        self._poll.register(ward.pidfd, select.POLLIN)
        fds = [ward.pidfd, ward.lifeline.fileno(), *ward.above]
        sentinel.entrust(self._guard, ward.groups, fds)
        channel.close_all(ward.above)
        with contextlib.suppress(OSError):  # the parent has let go already: `_hear` will see it
            socket.send_fds(
                ward.lifeline,
                [json.dumps({"pid": ward.pid}).encode()],
                [ward.pidfd],
                socket.MSG_DONTWAIT,
            )

    def serve(self) -> None:
        """Look after the workers until there is an order on the control socket, or its end.

        Raises EOFError where the sentinel has died: nobody would end the workers of a zygote that
        is killed together with the parent.
        """
        while True:
            events = self._poll.poll(self._patience())
            for fd, _ in events:
                if fd in self._by_pidfd:
                    self._reap(self._by_pidfd[fd])
                elif fd in self._by_lifeline:
                    self._hear(self._by_lifeline[fd])
                elif fd == self._guard.fileno():
                    raise EOFError
            self._end_the_late()
            if any(fd == self._control for fd, _ in events):
                return

    def end_all(self) -> None:
        """The parent has gone: no worker stays."""
        for ward in self._by_pidfd.values():
            _kill(ward)
        for ward in [*self._by_pidfd.values()]:
            self._reap(ward)

    def _patience(self) -> float | None:
        """Milliseconds until the next deadline."""
        due = [
            ward.deadline
            for ward in self._by_pidfd.values()
            if ward.deadline is not None and not ward.late
        ]
        return max(0.0, min(due) - time.monotonic()) * 1000 if due else None

    def _end_the_late(self) -> None:
        now = time.monotonic()
        for ward in self._by_pidfd.values():
            if ward.deadline is not None and ward.deadline <= now and not ward.late:
                ward.late = True
                _kill(ward)

    def _hear(self, ward: Ward) -> None:
        try:
            message = ward.lifeline.recv(_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            ward.deadline = float(message) + _GRACE
            return
        if ward.pidfd in self._by_pidfd:
            _kill(ward)
        self._poll.unregister(ward.lifeline)
        del self._by_lifeline[ward.lifeline.fileno()]
        self._close_if_done(ward)

    def _reap(self, ward: Ward) -> None:
        _, status, usage = os.wait4(ward.pid, 0)
        self._poll.unregister(ward.pidfd)
        del self._by_pidfd[ward.pidfd]
        with contextlib.suppress(OSError):
            ward.lifeline.send(_obituary(status, usage, late=ward.late), socket.MSG_DONTWAIT)
        self._close_if_done(ward)

    def _close_if_done(self, ward: Ward) -> None:
        """Dead, and let go of by the parent, who may want to read the cgroup's counters first."""
        if ward.pidfd in self._by_pidfd or ward.lifeline.fileno() in self._by_lifeline:
            return
        os.close(ward.pidfd)
        ward.lifeline.close()


def _kill(ward: Ward) -> None:
    """And its pid namespace with it."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(ward.pidfd, signal.SIGKILL)


def _obituary(status: int, usage: resource.struct_rusage, *, late: bool) -> bytes:
    facts = {
        "status": status,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
        "late": late,
    }
    return json.dumps(facts).encode()
