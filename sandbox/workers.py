"""The parent's handle on one worker: spawn it, give it its request, take its reply, end it.

Until its READY has been read a worker is trusted; from the request on every byte is hostile, every
size is checked, and every wait ends at one absolute instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from multiprocess.connection import wait

from sandbox import channel, forks
from sandbox.causes import explain
from sandbox.errors import LimitError, WorkerError, printable, signal_name
from sandbox.isolation import Isolation, Layer, State
from sandbox.layers import watchdog
from sandbox.layers.cgroup import CgroupUnavailable, Group
from sandbox.limits import Limits, ResolvedLimits
from sandbox.processes import Zygote, ZygoteGone
from sandbox.ready import isolation_of
from sandbox.reply import Reply, Usage, cpu_of

_MAX_REPLY_FDS = 16
_MESSAGE = 4096  # bytes of what the zygote says of a worker
_BURY_SECONDS = 5.0
_CPU_SHARE = 0.5  # RLIMIT_CPU counts whole ticks; on a busy host the exact figure is far lower
_DYING_SECONDS = 0.5  # between a dying worker's end of file and the zygote's report
_FAILURE_BYTES = 16384
_JOIN_SECONDS = 5.0
_LOOK_SECONDS = 0.1  # between two looks whether a zygote that says nothing is still there


@dataclass(frozen=True)
class _End:
    """How a worker ended, as the zygote saw it."""

    status: int = 0
    cpu: float = 0.0
    memory: int = 0
    late: bool = False

    @property
    def signal(self) -> int | None:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None


def _no_group(cause: str, remedy: str) -> Layer:
    return Layer("cgroup", State.UNAVAILABLE, "", cause, remedy)


def _plan_group(disabled: frozenset[str]) -> Group | Layer:
    """A group for the next worker, or the layer that says why there is none."""
    if "cgroup" in disabled:
        return _no_group(*explain("cgroup", "disabled", 0))
    try:
        return Group.plan()
    except CgroupUnavailable as error:
        return _no_group(error.cause, error.remedy)


class Worker:
    """One confined worker, from its spawning to its burial."""

    isolation: Isolation  # set by `confined`
    _limits: ResolvedLimits  # those of its group; `run` has it serve under them
    _began: float

    def __init__(self, zygote: Zygote, disabled: frozenset[str], *, spare: bool) -> None:
        """Order one of the zygote; `confined` waits for it. ZygoteGone where there is nobody."""
        self._zygote = zygote
        self._disabled = disabled
        self._spare = spare
        self._ending = threading.Lock()
        self._pid = 0
        self._pidfd = -1
        self._end: _End | None = None
        self._watchdog: watchdog.Watchdog | None = None
        self._limits = Limits().resolved()
        with forks.creating:  # a fork in here would keep both ends of each pair
            forks.register(self)
            group = _plan_group(disabled)
            self._group = group if isinstance(group, Group) else None
            self._sock, sock = socket.socketpair()
            self._lifeline, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._sock.setblocking(False)
            try:
                self._order(zygote, sock, lifeline)
                self._cgroup = group if isinstance(group, Layer) else self._make(group)
                self._join()
            except BaseException:
                if self._group is not None:
                    self._group.remove()
                self.abandon()
                raise
            finally:
                sock.close()
                lifeline.close()

    def _order(self, zygote: Zygote, sock: socket.socket, lifeline: socket.socket) -> None:
        above = self._group.dirs if self._group else []
        message = {
            "kind": "worker",
            "groups": [name for _, name in above],
            "disabled": sorted(self._disabled),
            "spare": self._spare,
        }
        zygote.order(message, [sock.fileno(), lifeline.fileno(), *(fd for fd, _ in above)])
        # Who writes to a socket is expected to sleep soon: the kernel queues the reader behind it,
        # on the same CPU. There is more to do here, and the fork need not wait for it.
        os.sched_yield()

    def _make(self, group: Group) -> Layer:
        """The group, while the zygote clones; the layer that it is."""
        try:
            self._group = group.make(self._limits)
        except CgroupUnavailable as error:
            self._group = None
            return _no_group(error.cause, error.remedy)
        return self._group.layer

    def _join(self) -> None:
        """Let the worker go on, in its group."""
        fds = self._group.join_fds if self._group is not None else []
        until = channel.Wait(self._sock, time.monotonic() + _JOIN_SECONDS)
        with contextlib.suppress(OSError):  # it was never cloned, or is dead: `confined` tells
            channel.send_until(self._sock, channel.JOIN, b"", fds, until)

    def _limit(self, limits: ResolvedLimits) -> None:
        if self._group is not None and limits != self._limits:
            self._group.apply(limits)
        self._limits = limits

    @property
    def sock(self) -> socket.socket:
        """This process's end of the channel."""
        return self._sock

    def confined(self, deadline: float, limits: ResolvedLimits | None = None) -> None:
        """Wait for READY: from here `isolation` says what was had. `limits`: of the run to come.

        Raises ZygoteGone where it was never forked, WorkerError where it could not be, TimeoutError
        at the deadline.
        """
        if limits is not None:
            with contextlib.suppress(OSError):  # `run` meets it again, and says what it means
                self._limit(limits)
        self._await_birth(deadline)
        if not self._pid:
            raise ZygoteGone("no worker was forked")
        try:
            kind, body, _ = channel.receive_until(
                self._sock, _FAILURE_BYTES, 0, channel.Wait(self._sock, deadline)
            )
        except (EOFError, OSError, channel.FrameError) as error:
            if isinstance(error, TimeoutError):
                raise
            end = self._hear_end()
            raise WorkerError(
                "the worker died while it was being confined", end.signal if end else None
            ) from None
        if kind != channel.READY:
            raise WorkerError("the worker did not say READY")
        self.isolation = isolation_of(body, self._cgroup, self._has_memory(), self._disabled)

    def run(
        self,
        entry: str,
        request: bytes,
        fds: Sequence[int],
        limits: ResolvedLimits,
        until: channel.Wait,
        meanwhile: Callable[[], None],
    ) -> Reply:
        """Send the request, wait for the reply. The worker is dead, or dying, afterwards."""
        self._began = until.deadline - limits.wall
        head = json.dumps({"entry": entry, "limits": asdict(limits)}).encode()
        with self._watched(limits):
            try:
                self._limit(limits)
                self._lifeline.send(repr(until.deadline).encode())
                body = b"\n".join((head, request))
                channel.send_until(self._sock, channel.REQUEST, body, fds, until)
                meanwhile()
                kind, data, returned = channel.receive_until(
                    self._sock, limits.reply, _MAX_REPLY_FDS, until
                )
            except TimeoutError:
                raise LimitError("wall", limits.wall) from None
            except channel.FrameTooLarge:
                raise LimitError("output", limits.reply, "its reply is larger") from None
            except channel.FrameError as error:
                raise WorkerError(f"the worker broke the protocol: {error}") from None
            except (EOFError, OSError):
                raise self._why_it_died() from None
            finally:
                usage = self._usage()
                self.kill()
        if kind == channel.REPLY:
            return Reply(data, returned, self.isolation, usage)
        channel.close_all(returned)
        raise self._failure(kind, data)

    def check_cpu(self) -> None:
        """The whole tree's CPU time, where a cgroup tells: RLIMIT_CPU is per process."""
        if self._group is not None and self._group.usage()[1] > self._limits.cpu:
            raise LimitError("cpu", self._limits.cpu)

    def kill(self) -> None:
        """SIGKILL to the worker and so to its pid namespace; the zygote does the rest."""
        with self._ending, contextlib.suppress(OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with self._ending, contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)

    def bury(self, seconds: float = _BURY_SECONDS) -> None:
        """Kill, wait until the zygote has reaped it, remove and close what is left."""
        if self._lifeline.fileno() < 0:  # abandoned: it is the parent's, from before a fork
            return
        self.kill()
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while wait([self._lifeline], max(0.0, deadline - time.monotonic())):
                if not self._lifeline.recv(_MESSAGE):
                    break
        if self._group is not None:
            self._group.remove()
        self.abandon()

    def after_fork_in_child(self) -> None:
        self._ending = threading.Lock()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors, no more."""
        with self._ending:  # `kill` must not meet a descriptor that is another's by now
            self._sock.close()
            self._lifeline.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
            if self._group is not None:
                self._group.close()

    def dead(self) -> bool:
        """Has this (idle) worker ended or said anything, or the zygote of it?"""
        return bool(wait([self._sock, self._lifeline], 0))

    def _has_memory(self) -> bool:
        return self._group is not None and self._group.has_memory

    def _watched(self, limits: ResolvedLimits) -> contextlib.AbstractContextManager[object]:
        if self.isolation["memory"].state is not State.PARTIAL:
            return contextlib.nullcontext()
        self._watchdog = watchdog.Watchdog(self._pid, limits.memory, lambda _: self.kill())
        return self._watchdog

    def _await_birth(self, deadline: float) -> None:
        """Read the first that the zygote says of it.

        One that is killed may have forked it and said nothing; and the lifeline does not end then,
        for the sentinel has it too.
        """
        until = time.monotonic() + _LOOK_SECONDS
        while until < deadline and not wait([self._lifeline], until - time.monotonic()):
            if self._zygote.gone() and not wait([self._lifeline], 0):
                raise ZygoteGone("it died before it told of a worker")
            until = time.monotonic() + _LOOK_SECONDS
        self._hear_zygote(deadline)

    def _hear_zygote(self, deadline: float) -> bool:
        """Read what the zygote says of it. False at the end; TimeoutError at the deadline."""
        if not wait([self._lifeline], max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        with forks.creating:
            try:
                message, fds = channel.receive_message(self._lifeline, _MESSAGE, 1)
            except OSError:
                return False
            if fds:
                self._pidfd = fds[0]
        if not message:
            return False
        facts = json.loads(message)
        if "refused" in facts:
            raise WorkerError(f"the kernel refused to fork a worker: {facts['refused']}")
        if "pid" in facts:
            self._pid = facts["pid"]
        else:
            self._end = _End(**facts)
        return True

    def _hear_end(self) -> _End | None:
        """The zygote's report on a worker that has just died; None where it lives on."""
        with contextlib.suppress(TimeoutError):
            deadline = time.monotonic() + _DYING_SECONDS
            while self._end is None and self._hear_zygote(deadline):
                pass
        return self._end

    def _why_it_died(self) -> LimitError | WorkerError:
        end = self._hear_end()
        if (self._group is not None and self._group.oom_killed()) or (
            self._watchdog is not None and self._watchdog.exceeded
        ):
            return LimitError("memory", self._limits.memory)
        if end is None:
            return WorkerError("the worker broke the protocol: it closed its channel")
        if end.late:
            return LimitError("wall", self._limits.wall)
        number = end.signal
        if number == signal.SIGXCPU or (
            number == signal.SIGKILL and end.cpu > _CPU_SHARE * self._limits.cpu
        ):
            return LimitError("cpu", self._limits.cpu)
        if number is not None:
            return WorkerError(f"the worker was ended by {signal_name(number)}", number)
        return WorkerError("the worker ended without a reply")

    def _failure(self, kind: int, data: bytes) -> LimitError | WorkerError:
        if kind == channel.FAILED:
            limit, _, words = data[:_FAILURE_BYTES].partition(b"\0")
            detail = printable(words.decode("utf-8", "replace"))
            name = limit.decode("ascii", "replace")
            allowed = asdict(self._limits).get(name)
            return LimitError(name, allowed, detail) if allowed else WorkerError(detail)
        if kind == channel.REFUSED:
            words = data[:_FAILURE_BYTES]
            return WorkerError(
                "the entry cannot be called: " + printable(words.decode("utf-8", "replace"))
            )
        return WorkerError("the worker broke the protocol: unknown kind of frame")

    def _usage(self) -> Usage:
        memory, cpu = self._group.usage() if self._group is not None else (0, 0.0)
        if self._watchdog is not None:
            memory, cpu = max(memory, self._watchdog.peak), max(cpu, self._watchdog.cpu)
        if not cpu:
            cpu = cpu_of(self._pid)
        return Usage(time.monotonic() - self._began, cpu, memory)
