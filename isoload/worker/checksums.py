"""The CRCs of an archive's records, checked by a second thread beside the reading.

zlib lets go of the interpreter's lock, so that on a second core they cost little time. Where no
thread can be had, whoever waits for the answer checks them all.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import zlib
from collections import deque

_LARGE = 1 << 18
"""Records below this are left to whoever waits: a handover of the lock costs as much as they do."""
_SWITCH = 1e-5
"""Seconds until a thread gets the lock: by default more than it takes to read the file."""


class Checksums:
    """Begins at once: `places` are (offset, bytes) in `view`, `sums` their CRCs. One thread, as
    few may run in a worker."""

    def __init__(self, view: memoryview, places: list[tuple[int, int]], sums: list[int]) -> None:
        self._view = view
        pairs = zip(places, sums, strict=False)
        records = sorted([(size, at, known) for (at, size), known in pairs], reverse=True)
        self._large = deque(record for record in records if record[0] >= _LARGE)
        self._small = deque(record for record in records if record[0] < _LARGE)
        self._intact = True
        self._thread: threading.Thread | None = None
        if self._large:
            sys.setswitchinterval(_SWITCH)
            thread = threading.Thread(target=self._check, args=(self._large,), daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads are allowed
                thread.start()
                self._thread = thread

    def hold(self) -> bool:
        """Whether all of them are right; does what is left to do."""
        self._check(self._large)
        self._check(self._small)
        if self._thread is not None:
            self._thread.join()
        return self._intact

    def cancel(self) -> None:
        """Check no more."""
        self._large.clear()
        self._small.clear()
        self.hold()

    def _check(self, records: deque[tuple[int, int, int]]) -> None:
        """Both threads take from the same: whoever is free takes the next."""
        while self._intact:
            try:
                size, at, known = records.popleft()
            except IndexError:
                return
            if zlib.crc32(self._view[at : at + size]) != known:
                self._intact = False
