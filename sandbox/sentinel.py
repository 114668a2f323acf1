"""The sentinel: a small process that ends a worker when its parent has let go of it, and removes
the worker's cgroups where the parent was killed.

The zygote ends workers too; the sentinel is there for when the zygote is killed or stopped, with
the parent or without. It goes when the zygote and the last worker have gone. The zygote does not
go on without it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
from dataclasses import dataclass

from sandbox import channel
from sandbox.layers.cgroup_find import CgroupUnavailable
from sandbox.layers.cgroup_leaf import cleanup_leaf

_MESSAGE = 4096  # bytes
_MAX_FDS = 16
_REMOVE_TRIES = 20
_REMOVE_PAUSE = 10  # milliseconds


@dataclass(eq=False)
class _Held:
    """One worker: what it dies by, and what it leaves."""

    pidfd: int
    lifeline: int
    above: list[int]  # the folders in which its cgroups lie
    groups: list[str]  # their names there
    tries: int = 0  # to remove them


def live(zygote: socket.socket) -> None:
    """The sentinel's whole life. See `companions.start`."""
    _Sentinel(zygote).watch()
    with contextlib.suppress(CgroupUnavailable, OSError, ValueError):
        cleanup_leaf()  # of a parent that was killed; nothing where it lives


def entrust(sentinel: socket.socket, groups: list[str], fds: list[int]) -> None:
    """Hand over a worker: its pidfd, its lifeline, and the folders of the cgroups named."""
    socket.send_fds(sentinel, [json.dumps(groups).encode()], fds)


class _Sentinel:
    def __init__(self, zygote: socket.socket) -> None:
        self._zygote = zygote
        self._serving = True
        self._poll = select.poll()
        self._poll.register(zygote, select.POLLIN)
        self._by_lifeline: dict[int, _Held] = {}
        self._leaving: list[_Held] = []  # killed; their cgroups are there

    def watch(self) -> None:
        """Until the zygote and every worker have gone."""
        while self._serving or self._by_lifeline or self._leaving:
            for fd, _ in self._poll.poll(_REMOVE_PAUSE if self._leaving else None):
                if fd in self._by_lifeline:
                    self._end(self._by_lifeline.pop(fd))
                else:
                    self._hear()
            self._leaving = [held for held in self._leaving if not _removed(held)]

    def _hear(self) -> None:
        message, fds = channel.receive_message(self._zygote, _MESSAGE, _MAX_FDS)
        if not message:
            self._poll.unregister(self._zygote)
            self._serving = False
            return
        pidfd, lifeline, *above = fds
        self._by_lifeline[lifeline] = _Held(pidfd, lifeline, above, json.loads(message))
        self._poll.register(lifeline, select.POLLRDHUP)  # what the parent says is for the zygote

    def _end(self, held: _Held) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has died already
            signal.pidfd_send_signal(held.pidfd, signal.SIGKILL)
        self._poll.unregister(held.lifeline)
        channel.close_all([held.pidfd, held.lifeline])
        self._leaving.append(held)


def _removed(held: _Held) -> bool:
    """Have its cgroups been removed, here or by the parent, or been tried often enough?"""
    held.tries += 1
    busy = False
    for above, name in zip(held.above, held.groups, strict=True):
        try:
            os.rmdir(name, dir_fd=above)
        except OSError as error:
            busy |= error.errno == errno.EBUSY
    if busy and held.tries < _REMOVE_TRIES:
        return False
    channel.close_all(held.above)
    return True
