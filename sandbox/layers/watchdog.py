"""Kill a worker that takes too much memory, where no memory cgroup can be had. Runs in the parent.

The weaker form, and the report says so. Every few milliseconds a thread measures and, over the
limit, calls back; between two looks a worker can take what it can touch in that time. It sees

- what the worker's process tree has resident beyond what it was forked with (psutil, /proc/PID/
  statm: readable although the worker is not dumpable). Mapped shared memory counts.
- memfd and tmpfs pages that nobody maps, in no process's figures: only as the growth of the whole
  host's shared memory since the start, and of that no more than the worker had the CPU time to
  fill; so another program that fills /dev/shm does not end a load that did nothing.
- the host running out of memory while the worker has grown by more than what is left.

The hard bound, whatever the watchdog misses, is the product of the worker's rlimits: see
:func:`hard_bound`. A worker that frees what it was forked with can hide that much again, once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

import psutil

from sandbox.isolation import Layer, State

_INTERVAL_SECONDS = 0.01
_DUTY = 9  # list the tree in at most a tenth of the time: that reads all of the host's processes
_FILL_RATE = 16 << 30  # bytes a CPU second: more than any core can zero pages and hand them over
_FLOOR = 512 << 20  # bytes: a host with less available is running out (a twentieth, if small)
_LOG = logging.getLogger("sandbox")


def layer(cause: str, remedy: str) -> Layer:
    """The ``memory`` layer as the watchdog holds it; ``cause``: why there is no memory cgroup."""
    if not _sees_others():
        return Layer(
            "memory",
            State.UNAVAILABLE,
            "",
            f"{cause}; and the watchdog cannot see workers, because /proc is mounted with hidepid",
            f"{remedy}; or mount -o remount,hidepid=0 /proc",
        )
    return Layer("memory", State.PARTIAL, "watchdog (psutil)", cause, remedy)


def hard_bound(*, address_space: int, file_size: int, open_files: int, processes: int) -> int:
    """The most bytes that a worker under these rlimits can hold, seen by the watchdog or not.

    In each process: RLIMIT_AS of mappings, and RLIMIT_FSIZE in each of RLIMIT_NOFILE descriptors;
    once more as many descriptors in flight over unix sockets (unix(7), ETOOMANYREFS).
    """
    return processes * (address_space + file_size * open_files) + file_size * open_files


def _sees_others() -> bool:
    """Under hidepid= (proc(5)) a worker, which is not dumpable, is as hidden as another's init."""
    try:
        psutil.Process(1).memory_info()
    except psutil.Error:
        return False
    return True


class Watchdog:
    """Watch the tree of ``pid`` while in the ``with`` block.

    ``on_exceeded`` is called once, from the watchdog's thread, with the measured bytes; it is the
    one to kill. ``limit_bytes`` bounds the growth since the block was entered.
    """

    def __init__(self, pid: int, limit_bytes: int, on_exceeded: Callable[[int], None]) -> None:
        self.limit = limit_bytes
        self.peak = 0  # bytes that the tree had resident beyond its start
        self.cpu = 0.0  # seconds that the tree used, what it has reaped included
        self.exceeded = False
        self._pid = pid
        self._on_exceeded = on_exceeded
        self._children: list[psutil.Process] = []
        self._list_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sandbox-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        try:
            self._worker = psutil.Process(self._pid)
            start = self._worker.memory_info()
            self._start_cpu = _cpu_seconds(self._worker)
        except psutil.Error as error:  # gone, or not to be seen: then it must not live unwatched
            _LOG.warning("worker %d cannot be watched (%s), so it is ended", self._pid, error)
            self._on_exceeded(0)
            return self
        self._start_rss, self._start_shared = start.rss, start.shared
        host = psutil.virtual_memory()
        self._start_host_shared = host.shared
        self._floor = min(host.total // 20, _FLOOR)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            try:
                measured = self._measure()
            except (psutil.Error, OSError):
                if not self._worker.is_running():
                    return
                measured = 0
            if measured > self.limit and self._worker.is_running():
                self.exceeded = True
                try:
                    self._on_exceeded(measured)
                except Exception:  # in a thread of its own: nobody else would hear of it
                    _LOG.exception("the watchdog could not end worker %d", self._pid)
                return

    def _measure(self) -> int:
        """What the worker holds, in bytes; more than the limit where the host is running out."""
        own = self._worker.memory_info()
        resident: int = max(0, own.rss - self._start_rss)
        private: int = max(0, (own.rss - own.shared) - (self._start_rss - self._start_shared))
        cpu = _cpu_seconds(self._worker) - self._start_cpu
        for child in self._descendants():
            with contextlib.suppress(psutil.Error):
                memory = child.memory_info()
                resident += memory.rss
                private += memory.rss - memory.shared
                cpu += _cpu_seconds(child)
        self.peak = max(self.peak, resident)
        self.cpu = max(self.cpu, cpu)
        host = psutil.virtual_memory()
        filled = min(max(0, host.shared - self._start_host_shared), int(cpu * _FILL_RATE))
        measured: int = max(resident, private + filled)
        if host.available < self._floor < measured:
            return max(measured, self.limit + 1)
        return measured

    def _descendants(self) -> list[psutil.Process]:
        began = time.monotonic()
        if began >= self._list_at:
            self._children = self._worker.children(recursive=True)
            ended = time.monotonic()
            self._list_at = ended + (ended - began) * _DUTY
        return self._children


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
