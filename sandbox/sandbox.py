"""Sandbox: hand out confined workers, one a call; keep spares; leave nothing behind.

What a worker is, and how it is confined, is not decided here: see `confine.py` and `workers.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from types import TracebackType

from sandbox import channel
from sandbox.errors import IsolationError, LimitError, SandboxError, WorkerError
from sandbox.isolation import DEFAULT_REQUIRED, Isolation, check_required
from sandbox.limits import Limits
from sandbox.pool import SPAWN_SECONDS, Pool
from sandbox.processes import Recipe, Zygote, ZygoteGone
from sandbox.reopen import reopen
from sandbox.reply import Reply
from sandbox.slots import Reservation, Slots
from sandbox.workers import Worker

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Sandbox:
    """Runs named functions, each call in a fresh confined worker process.

    preload      modules that the zygote imports before it forks, by name
    warm_up      "package.module:function", called once in the zygote after the preload
    warm_up_data where given, the argument of that call: trusted bytes, which workers can read
    rehearsal    "package.module:function", called in each spare while it waits for its request, so
                 that the page faults of a first run lie behind it. A generator: between two steps
                 the spare looks whether its request has come
    reopens      can it `reopen` files? That takes a small process beside the zygote
    spares       workers kept confined and waiting, for speed
    max_workers  workers that may serve at one time; default: twice the CPUs, at least four
    beside       a sandbox that has its `max_workers` together with this one. Each has a zygote,
                 workers and spares of its own

    Thread-safe. A fork of this process may go on using it: the child starts a zygote of its own.
    """

    def __init__(
        self,
        *,
        preload: Sequence[str] = (),
        warm_up: str | None = None,
        warm_up_data: bytes | None = None,
        rehearsal: str | None = None,
        reopens: bool = True,
        spares: int = 0,
        max_workers: int | None = None,
        beside: Sandbox | None = None,
        _disable: Collection[str] = (),
    ) -> None:
        if isinstance(preload, str):
            raise TypeError("preload is a sequence of module names, not one string")
        for name in (warm_up, rehearsal):
            if name is not None and not _NAME.fullmatch(name):
                raise ValueError(f'expected "package.module:function", not {name!r}')
        if warm_up_data is not None and warm_up is None:
            raise ValueError("warm_up_data is the argument of a warm_up, and there is none")
        if spares < 0 or (max_workers is not None and max_workers < 1):
            raise ValueError("spares must be at least 0, and max_workers at least 1")
        if beside is not None and max_workers is not None:
            raise ValueError("beside has its max_workers already: give only one of the two")
        recipe = Recipe(tuple(preload), warm_up, warm_up_data, rehearsal, reopens)
        self._reopens = reopens
        self._pool = Pool(recipe, spares, check_required(_disable))
        self._slots: Slots = (
            Slots(max_workers or max(4, 2 * (os.cpu_count() or 1)))
            if beside is None
            else beside._slots
        )
        _open.add(self)

    def start(self, *, spares: bool = True) -> None:
        """Begin to start the zygote, and the spares after it, without waiting for them. `spares`
        False: they are made after the first run."""
        self._pool.start()
        if spares:
            self._pool.fill()

    @contextlib.contextmanager
    def reserve(self, *, begin: bool = True) -> Iterator[Reservation]:
        """Have a worker begun, where no spare waits, for a `run` within this block.

        Nothing is waited for, so that what the caller does before that `run` is done meanwhile;
        and nothing is raised: what was in the way, `run` meets again, and says. `begin=False`: only
        when `run` is called, for a caller who may take long until then: a worker that has begun
        counts as one of `max_workers`.

        It may serve several runs, one after the other, of this sandbox and of those beside it: they
        count as one of `max_workers`, and none but the first waits for its turn. At the end of the
        block the workers, dead by then, are buried and the next spares are made: so what the caller
        does after a `run` has the processor to itself.
        """
        reservation = Reservation(self._slots, self._pool)
        try:
            if begin and not self._pool.idle and reservation.take_slot(0):
                reservation.begin()
            yield reservation
        finally:
            reservation.end()

    def run(
        self,
        entry: str,
        request: bytes,
        fds: Sequence[int] = (),
        limits: Limits | None = None,
        *,
        require: Collection[str] = DEFAULT_REQUIRED,
        reserved: Reservation | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Call `entry` ("package.module:function") in a fresh worker and return its reply.

        The function takes (request: bytes, fds: list[int]) and returns (bytes, list of fds).
        `reserved`: of a `reserve` around this call, of this sandbox or of one beside it.
        `meanwhile`: called when the worker has its request; it must not take long.
        `limits.wall` counts from here once the zygote serves, and is for all runs of a reservation
        together; the other limits are each run's. Raises IsolationError, before the
        worker has seen anything, where a layer in `require` cannot be had; LimitError; WorkerError
        where the function raises, dies or breaks the protocol; ClosedError.
        """
        if not _NAME.fullmatch(entry):
            raise ValueError(f'entry must be "package.module:function", not {entry!r}')
        required = check_required(require)
        if reserved is not None:
            reserved.check(self._slots)
        body = bytes(request)
        size = len(body) + sum(os.fstat(fd).st_size for fd in fds)
        resolved = (limits or Limits()).resolved(size)
        self._pool.serving()
        started = time.monotonic()
        with contextlib.nullcontext(reserved) if reserved is not None else self.reserve() as place:
            deadline = started + resolved.wall - place.spent
            if not place.take_slot(max(0.0, deadline - started)):
                raise LimitError("wall", resolved.wall, "no worker became free")
            try:
                worker = self._pool.take(deadline, resolved, place.next(self._pool))
                place.over.append((self._pool, worker))
                missing = worker.isolation.missing(required)
                if missing:
                    raise IsolationError(missing)

                def tick() -> None:
                    self._pool.fill()
                    worker.check_cpu()

                until = channel.Wait(worker.sock, deadline, tick)
                return worker.run(entry, body, fds, resolved, until, meanwhile)
            except SandboxError:
                self._pool.raise_if_closed()
                raise
            finally:
                place.spent += time.monotonic() - started

    def reopen(self, fd: int) -> int:
        """The regular file of `fd`, opened again through a read-only mount: for a worker.

        Whoever holds the result can change neither the file's bytes nor its mode, times or
        attributes. The caller closes it. Raises OSError where that cannot be had: no path leads to
        the file any more, or the host has no namespaces; SandboxError where no zygote serves;
        ValueError under `reopens=False`.
        """
        if not self._reopens:
            raise ValueError("this sandbox was made with reopens=False: it opens no file again")
        for _ in range(2):
            zygote = self._pool.serving()
            try:
                return reopen(zygote, fd, time.monotonic() + SPAWN_SECONDS)
            except ZygoteGone:
                zygote.await_end()
                if not zygote.gone():
                    raise OSError(errno.EROFS, "the opener has died: no file is lent") from None
        raise WorkerError("the zygote died twice while it was to open a file again")

    def isolation(self) -> Isolation:
        """What a worker of this sandbox got. Spawns one where none has been."""
        if self._pool.isolation is None:
            self._pool.serving()
            worker = self._pool.take(time.monotonic() + SPAWN_SECONDS)
            self._pool.retire(worker)
            self._pool.fill()
            return worker.isolation
        return self._pool.isolation

    def close(self) -> None:
        """End every worker and the zygote, within a few seconds, whatever they do. Idempotent."""
        self._pool.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What the tests look into

    @property
    def _zygote(self) -> Zygote | None:
        return self._pool.zygote

    @property
    def _idle(self) -> deque[Worker]:
        return self._pool.idle


_open: weakref.WeakSet[Sandbox] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for sandbox in list(_open):
        with contextlib.suppress(Exception):
            sandbox.close()
