"""How many workers may serve at one time, and one caller's place among them.

The place is one slot, in which workers serve one after the other. They are killed there and then,
and buried at the end: so what the caller does after a run has the processor to itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sandbox import forks
from sandbox.pool import Pool
from sandbox.workers import Worker


class Slots:
    """One count, for all sandboxes that are beside each other. In a fork's child all are free."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.Semaphore(count)
        forks.register(self)

    def after_fork_in_child(self) -> None:
        self._free = threading.Semaphore(self._count)

    def take(self, seconds: float) -> Callable[[], None] | None:
        """What gives the slot back; None where no slot became free in so many seconds."""
        free = self._free

        def give_back() -> None:
            if free is self._free:  # else it was the parent's, from before a fork
                free.release()

        return give_back if free.acquire(timeout=seconds) else None


class Reservation:
    """One caller's place, from `Sandbox.reserve` on: its slot, and the workers that served there.
    For the sandboxes that share the slots to look into, and nobody else."""

    def __init__(self, slots: Slots, pool: Pool) -> None:
        self._slots = slots
        self._give_back: Callable[[], None] | None = None  # the slot, once it is taken
        self._pools = [pool]
        self._lock = threading.Lock()
        self._unburied = 0
        self._ended = False
        self.spent = 0.0  # seconds, in runs
        self.begun: tuple[Pool, Worker] | None = None
        self.over: list[tuple[Pool, Worker]] = []

    def check(self, slots: Slots) -> None:
        """ValueError where a sandbox with these slots cannot use it."""
        if self._ended:
            raise ValueError("the reservation has ended: use it within its block")
        if slots is not self._slots:
            raise ValueError("the reservation is of a sandbox that shares no slots with this one")

    def take_slot(self, seconds: float) -> bool:
        """Take the slot, unless it has it. False where none became free in so many seconds."""
        if self._give_back is None:
            self._give_back = self._slots.take(seconds)
        return self._give_back is not None

    def begin(self) -> None:
        """Have a worker begun, of the pool of who reserved."""
        pool = self._pools[0]
        worker = pool.begin()
        if worker is not None:
            self.begun = pool, worker

    def next(self, pool: Pool) -> Worker | None:
        """Let a worker of `pool` be the next one: the one that was begun, where it is of `pool`.

        All others are ended: no two of a reservation live at one time.
        """
        if pool not in self._pools:
            self._pools.append(pool)
        begun, self.begun = self.begun, None
        if begun is not None and begun[0] is not pool:
            self.over.append(begun)
            begun = None
        for _, worker in self.over:
            worker.kill()
        return begun[1] if begun is not None else None

    def end(self) -> None:
        """Have each worker buried by its pool, and each pool's next spare made."""
        self._ended = True
        if self.begun is not None:
            self.over.append(self.begun)
        self._unburied = len(self.over)
        for pool, worker in self.over:
            pool.retire(worker, self._buried)
        if not self.over and self._give_back is not None:
            self._give_back()
        for pool in self._pools:
            pool.fill()

    def _buried(self) -> None:
        """The slot is free when the last one is gone, whichever pool's that is."""
        with self._lock:
            self._unburied -= 1
            if self._unburied == 0 and self._give_back is not None:
                self._give_back()
