"""A zygote, the workers that it forked, and the spares among them.

Who may have a worker, and how many serve at one time, is not decided here: see `sandbox.py`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from sandbox import forks
from sandbox.errors import ClosedError, IsolationError, LimitError, SandboxError, WorkerError
from sandbox.housekeeping import Housekeeper
from sandbox.isolation import Isolation, Layer, State
from sandbox.limits import ResolvedLimits
from sandbox.processes import Recipe, Zygote, ZygoteGone
from sandbox.workers import Worker

_LOG = logging.getLogger("sandbox")
SPAWN_SECONDS = 30.0  # for a worker that nobody is waiting for yet
_CLOSE_SECONDS = 5.0


class Pool:
    """Starts the zygote and keeps it, takes workers of it, and ends them. Thread-safe."""

    def __init__(self, recipe: Recipe, spares: int, disabled: frozenset[str]) -> None:
        self._recipe = recipe
        self._spares = spares
        self._disabled = disabled
        self._closed = False
        self._reset()
        forks.register(self)

    def _reset(self) -> None:
        self._lock = threading.Condition()
        self._starting = threading.Lock()
        self.zygote: Zygote | None = None
        self._workers: set[Worker] = set()
        self.idle: deque[Worker] = deque()
        self._housekeeper = Housekeeper()
        self._filling = False
        self.isolation: Isolation | None = None  # what its workers get, once there was one

    def after_fork_in_child(self) -> None:
        """Nothing that the parent started is this process's: let go of it, and begin anew."""
        self._reset()

    def close(self) -> None:
        """End every worker and the zygote, within a few seconds, whatever they do. Idempotent."""
        with self._lock:
            self._closed = True
            while self.idle:
                self.retire(self.idle.popleft())
            for worker in self._workers:
                worker.kill()
            self._lock.wait_for(lambda: not self._workers, timeout=_CLOSE_SECONDS)
            zygote, self.zygote = self.zygote, None
        self._housekeeper.stop(_CLOSE_SECONDS)
        if zygote is not None:
            zygote.stop()

    def raise_if_closed(self) -> None:
        if self._closed:
            raise ClosedError("the sandbox is closed") from None

    # The zygote

    def start(self) -> Zygote:
        """The living zygote, started where there is none, restarted where it has died."""
        if not sys.platform.startswith("linux"):
            raise IsolationError((_not_linux(),))
        with self._starting:
            self.raise_if_closed()
            zygote = self.zygote
            if zygote is not None and zygote.gone() and zygote.served:
                _LOG.warning("the zygote ended (%s); starting a new one", zygote.death())
                zygote.stop()
                zygote = None
            if zygote is None:
                zygote = self.zygote = Zygote(self._recipe)
            return zygote

    def serving(self) -> Zygote:
        """The zygote, once it serves."""
        zygote = self.start()
        try:
            zygote.ready()
        except SandboxError:
            self.raise_if_closed()
            raise
        return zygote

    # Workers

    def begin(self) -> Worker | None:
        """A worker that nobody waits for yet, where the zygote can fork one at once."""
        with contextlib.suppress(ZygoteGone, SandboxError, OSError):
            zygote = self.start()
            if zygote.served:
                return self._order(zygote)
        return None

    def take(
        self, deadline: float, limits: ResolvedLimits | None = None, begun: Worker | None = None
    ) -> Worker:
        """A confined worker: the one that was begun, or a spare, or a new one."""
        while True:
            with self._lock:
                worker = self.idle.popleft() if self.idle and begun is None else None
            if worker is None:
                return self._spawn(deadline, limits, begun)
            if not worker.dead():
                return worker
            self.retire(worker)

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
                zygote = self.serving()
                worker = worker or self._order(zygote, spare=spare)
                worker.confined(deadline, limits)
                self.isolation = worker.isolation
                return worker
            except ZygoteGone:
                self.retire(worker)
                worker = None
                zygote.await_end()
            except TimeoutError:
                self.retire(worker)
                allowed = limits.wall if limits is not None else SPAWN_SECONDS
                raise LimitError("wall", allowed, "no worker was confined in time") from None
            except BaseException:
                self.retire(worker)
                raise
        raise WorkerError("the zygote died twice while it was to fork a worker")

    def retire(self, worker: Worker | None, then: Callable[[], None] = lambda: None) -> None:
        """Kill the worker now, and bury it in the background; `then`: what to do after that."""
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
                then()

        self._housekeeper.do(bury)

    def fill(self) -> None:
        """Have spares made, up to their number, in the background."""
        if not self._spares or self._filling or self._closed:
            return
        if len(self.idle) >= self._spares:
            return
        self._filling = True
        self._housekeeper.do(self._fill_now)

    def _fill_now(self) -> None:
        try:
            while len(self.idle) < self._spares and not self._closed:
                deadline = time.monotonic() + SPAWN_SECONDS
                worker = self._spawn(deadline, spare=True)
                with self._lock:
                    if not self._closed:
                        self.idle.append(worker)
                        continue
                self.retire(worker)
        except SandboxError as error:
            _LOG.debug("no spare worker: %s", error)  # who needs a worker gets the error raised
        finally:
            self._filling = False


def _not_linux() -> Layer:
    return Layer(
        "process",
        State.UNAVAILABLE,
        "",
        f"this is {sys.platform}: workers are confined by mechanisms of the Linux kernel",
        "use Linux, in a virtual machine if need be (on Windows: WSL 2)",
    )
