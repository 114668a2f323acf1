"""Sandbox: hand out confined workers, one a call; keep spares; leave nothing behind.

What a worker is, and how it is confined, is not decided here: see `confine.py` and `workers.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType

from sandbox import channel, forks
from sandbox.errors import ClosedError, IsolationError, LimitError, SandboxError, WorkerError
from sandbox.housekeeping import Housekeeper
from sandbox.isolation import DEFAULT_REQUIRED, Isolation, Layer, State, check_required
from sandbox.limits import Limits, ResolvedLimits
from sandbox.processes import Zygote, ZygoteGone
from sandbox.reopen import reopen
from sandbox.reply import Reply
from sandbox.workers import Worker

_LOG = logging.getLogger("sandbox")
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SPAWN_SECONDS = 30.0  # for a worker that nobody is waiting for yet
_CLOSE_SECONDS = 5.0


class Reservation:
    """One caller's place in a sandbox, from `Sandbox.reserve` on: what it uses of it, and what is
    to be tidied up when it ends. For `Sandbox.run` to look into, and nobody else."""

    def __init__(self) -> None:
        self.slot = False  # is one of `max_workers` taken for it?
        self.begun: Worker | None = None
        self.over: list[Worker] = []


class Sandbox:
    """Runs named functions, each call in a fresh confined worker process.

    preload      modules that the zygote imports before it forks, by name
    warm_up      "package.module:function", called once in the zygote after the preload
    rehearsal    "package.module:function", called in each spare while it waits for its request, so
                 that the page faults of a first run lie behind it. A generator: between two steps
                 the spare looks whether its request has come
    spares       workers kept confined and waiting, for speed
    max_workers  workers that may serve at one time; default: twice the CPUs, at least four

    Thread-safe. A fork of this process may go on using it: the child starts a zygote of its own.
    """

    def __init__(
        self,
        *,
        preload: Sequence[str] = (),
        warm_up: str | None = None,
        rehearsal: str | None = None,
        spares: int = 0,
        max_workers: int | None = None,
        _disable: Collection[str] = (),
    ) -> None:
        if isinstance(preload, str):
            raise TypeError("preload is a sequence of module names, not one string")
        for name in (warm_up, rehearsal):
            if name is not None and not _NAME.fullmatch(name):
                raise ValueError(f'expected "package.module:function", not {name!r}')
        if spares < 0 or (max_workers is not None and max_workers < 1):
            raise ValueError("spares must be at least 0, and max_workers at least 1")
        self._preload = tuple(preload)
        self._warm_up = warm_up
        self._rehearsal = rehearsal
        self._spares = spares
        self._max_workers = max_workers or max(4, 2 * (os.cpu_count() or 1))
        self._disabled = check_required(_disable)
        self._closed = False
        self._reset()
        forks.register(self)
        _open.add(self)

    def _reset(self) -> None:
        self._lock = threading.Condition()
        self._starting = threading.Lock()
        self._slots = threading.Semaphore(self._max_workers)
        self._zygote: Zygote | None = None
        self._workers: set[Worker] = set()
        self._idle: deque[Worker] = deque()
        self._housekeeper = Housekeeper()
        self._filling = False
        self._isolation: Isolation | None = None

    def start(self) -> None:
        """Begin to start the zygote, and the spares after it, without waiting for them."""
        self._zygote_for_use()
        self._fill()

    @contextlib.contextmanager
    def reserve(self, *, begin: bool = True) -> Iterator[Reservation]:
        """Have a worker begun, where no spare waits, for a `run` within this block.

        Nothing is waited for, so that what the caller does before that `run` is done meanwhile;
        and nothing is raised: what was in the way, `run` meets again, and says. `begin=False`: only
        when `run` is called, for a caller who may take long until then: a worker that has begun
        counts as one of `max_workers`. At the end of the block the worker, dead by then, is buried
        and the next spare is made: so what the caller does after the `run` has the processor to
        itself.
        """
        reservation = Reservation()
        try:
            if begin and not self._idle and self._slots.acquire(blocking=False):
                reservation.slot = True
                with contextlib.suppress(ZygoteGone, SandboxError, OSError):
                    zygote = self._zygote_for_use()
                    if zygote.served:
                        reservation.begun = self._order(zygote)
            yield reservation
        finally:
            self._tidy(reservation)

    def run(
        self,
        entry: str,
        request: bytes,
        fds: Sequence[int] = (),
        limits: Limits | None = None,
        *,
        require: Collection[str] = DEFAULT_REQUIRED,
        reserved: Reservation | None = None,
    ) -> Reply:
        """Call `entry` ("package.module:function") in a fresh worker and return its reply.

        The function takes (request: bytes, fds: list[int]) and returns (bytes, list of fds).
        `reserved`: of a `reserve` around this call. `limits.wall` counts from here once the zygote
        serves. Raises IsolationError, before the worker has seen anything, where a layer in
        `require` cannot be had; LimitError; WorkerError where the function raises, dies or breaks
        the protocol; ClosedError.
        """
        if not _NAME.fullmatch(entry):
            raise ValueError(f'entry must be "package.module:function", not {entry!r}')
        required = check_required(require)
        body = bytes(request)
        size = len(body) + sum(os.fstat(fd).st_size for fd in fds)
        resolved = (limits or Limits()).resolved(size)
        self._serving()
        deadline = time.monotonic() + resolved.wall
        with contextlib.nullcontext(reserved) if reserved is not None else self.reserve() as place:
            if not place.slot:
                place.slot = self._slots.acquire(timeout=resolved.wall)
            if not place.slot:
                raise LimitError("wall", resolved.wall, "no worker became free")
            begun, place.begun = place.begun, None
            try:
                worker = self._take(deadline, resolved, begun)
                place.over.append(worker)
                missing = worker.isolation.missing(required)
                if missing:
                    raise IsolationError(missing)

                def tick() -> None:
                    self._fill()
                    worker.check_cpu()

                until = channel.Wait(worker.sock, deadline, tick)
                return worker.run(entry, body, fds, resolved, until)
            except SandboxError:
                self._raise_if_closed()
                raise

    def reopen(self, fd: int) -> int:
        """The regular file of `fd`, opened again through a read-only mount: for a worker.

        Whoever holds the result can change neither the file's bytes nor its mode, times or
        attributes. The caller closes it. Raises OSError where that cannot be had: no path leads to
        the file any more, or the host has no namespaces; SandboxError where no zygote serves.
        """
        for _ in range(2):
            zygote = self._serving()
            try:
                return reopen(zygote, fd, time.monotonic() + _SPAWN_SECONDS)
            except ZygoteGone:
                zygote.await_end()
                if not zygote.gone():
                    raise OSError(errno.EROFS, "the opener has died: no file is lent") from None
        raise WorkerError("the zygote died twice while it was to open a file again")

    def isolation(self) -> Isolation:
        """What a worker of this sandbox got. Spawns one where none has been."""
        if self._isolation is None:
            self._serving()
            worker = self._take(time.monotonic() + _SPAWN_SECONDS)
            self._retire(worker)
            self._fill()
            return worker.isolation
        return self._isolation

    def close(self) -> None:
        """End every worker and the zygote, within a few seconds, whatever they do. Idempotent."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._retire(self._idle.popleft())
            for worker in self._workers:
                worker.kill()
            self._lock.wait_for(lambda: not self._workers, timeout=_CLOSE_SECONDS)
            zygote, self._zygote = self._zygote, None
        self._housekeeper.stop(_CLOSE_SECONDS)
        if zygote is not None:
            zygote.stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Nothing that the parent started is this process's: let go of it, and begin anew."""
        self._reset()

    # The zygote

    def _zygote_for_use(self) -> Zygote:
        """The living zygote, started where there is none, restarted where it has died."""
        if not sys.platform.startswith("linux"):
            raise IsolationError((_not_linux(),))
        with self._starting:
            self._raise_if_closed()
            zygote = self._zygote
            if zygote is not None and zygote.gone() and zygote.served:
                _LOG.warning("the zygote ended (%s); starting a new one", zygote.death())
                zygote.stop()
                zygote = None
            if zygote is None:
                zygote = self._zygote = Zygote(self._preload, self._warm_up, self._rehearsal)
            return zygote

    def _serving(self) -> Zygote:
        """The zygote, once it serves."""
        zygote = self._zygote_for_use()
        try:
            zygote.ready()
        except SandboxError:
            self._raise_if_closed()
            raise
        return zygote

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ClosedError("the sandbox is closed") from None

    # Workers

    def _take(
        self, deadline: float, limits: ResolvedLimits | None = None, begun: Worker | None = None
    ) -> Worker:
        """A confined worker: the one that was begun, or a spare, or a new one."""
        while True:
            with self._lock:
                worker = self._idle.popleft() if self._idle and begun is None else None
            if worker is None:
                return self._spawn(deadline, limits, begun)
            if not worker.dead():
                return worker
            self._retire(worker)

    def _order(self, zygote: Zygote, *, spare: bool = False) -> Worker:
        worker = Worker(zygote, self._disabled, spare=spare)
        with self._lock:
            self._workers.add(worker)
        return worker

    def _spawn(
        self,
        deadline: float,
        limits: ResolvedLimits | None = None,
        worker: Worker | None = None,
        *,
        spare: bool = False,
    ) -> Worker:
        """A new worker, or the one that was begun, once it is confined. `limits`: of its run."""
        for _ in range(2):
            try:
                zygote = self._serving()
                worker = worker or self._order(zygote, spare=spare)
                worker.confined(deadline, limits)
                self._isolation = worker.isolation
                return worker
            except ZygoteGone:
                self._retire(worker)
                worker = None
                zygote.await_end()
            except TimeoutError:
                self._retire(worker)
                allowed = limits.wall if limits is not None else _SPAWN_SECONDS
                raise LimitError("wall", allowed, "no worker was confined in time") from None
            except BaseException:
                self._retire(worker)
                raise
        raise WorkerError("the zygote died twice while it was to fork a worker")

    def _retire(self, worker: Worker | None) -> None:
        """Kill the worker now, and bury it in the background."""
        if worker is None:
            return
        worker.kill()

        def bury() -> None:
            try:
                worker.bury()
            finally:
                with self._lock:
                    self._workers.discard(worker)
                    self._lock.notify_all()

        self._housekeeper.do(bury)

    def _tidy(self, reservation: Reservation) -> None:
        if reservation.begun is not None:
            reservation.over.append(reservation.begun)
        for worker in reservation.over:
            self._retire(worker)
        if reservation.slot and reservation.over:
            self._housekeeper.do(self._slots.release)  # once they are gone
        elif reservation.slot:
            self._slots.release()
        self._fill()

    def _fill(self) -> None:
        """Have spares made, up to their number, in the background."""
        if not self._spares or self._filling or self._closed:
            return
        if len(self._idle) >= self._spares:
            return
        self._filling = True
        self._housekeeper.do(self._fill_now)

    def _fill_now(self) -> None:
        try:
            while len(self._idle) < self._spares and not self._closed:
                deadline = time.monotonic() + _SPAWN_SECONDS
                worker = self._spawn(deadline, spare=True)
                with self._lock:
                    if not self._closed:
                        self._idle.append(worker)
                        continue
                self._retire(worker)
        except SandboxError as error:
            _LOG.debug("no spare worker: %s", error)  # who needs a worker gets the error raised
        finally:
            self._filling = False


_open: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _not_linux() -> Layer:
    return Layer(
        "process",
        State.UNAVAILABLE,
        "",
        f"this is {sys.platform}: workers are confined by mechanisms of the Linux kernel",
        "use Linux, in a virtual machine if need be (on Windows: WSL 2)",
    )


@atexit.register
def _close_all() -> None:
    for sandbox in list(_open):
        with contextlib.suppress(Exception):
            sandbox.close()
