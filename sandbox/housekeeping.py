"""A thread that does what nobody should wait for: bury workers, make spares."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_LOG = logging.getLogger("sandbox")

Job = Callable[[], None]


class Housekeeper:
    """Does its jobs one after the other; the thread starts with the first."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def do(self, job: Job) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work_off, args=(self._jobs,), name="sandbox-housekeeper", daemon=True
                )
                self._thread.start()
        self._jobs.put(job)

    def stop(self, seconds: float) -> None:
        """Let the jobs that are waiting be done, for at most so long."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join(timeout=seconds)


def _work_off(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception:  # one job's failure is not the next one's
            _LOG.exception("cleaning up after a worker failed")
        del job
