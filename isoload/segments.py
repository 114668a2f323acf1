"""The memory that a graph points into: the source, and the arena that came back from the worker.

Each is private to this process and writable, and lives as long as a storage of it. A segment from
the worker is mapped only after the sandbox has found it sealed and real. No number of a manifest is
used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sandbox import check_segment

from .manifest import ManifestError
from .memory import map_private


class Segments:
    """The source (index 0), then the segments that the worker sent. `sizes` are bytes.

    `source`: the memory that the result may lie on. The descriptors stay the caller's, who may
    close them afterwards. Raises `sandbox.WorkerError` for a segment that may not be mapped,
    ManifestError for one too many.
    """

    def __init__(
        self, source: memoryview, returned: Sequence[int] = (), max_bytes: int = 0
    ) -> None:
        if len(returned) > 1:
            raise ManifestError(f"{len(returned)} segments came back instead of one arena")
        sizes = [check_segment(fd, max_bytes) for fd in returned]
        self.sizes: tuple[int, ...] = (source.nbytes, *sizes)
        self._memories = [
            source,
            *(
                memoryview(map_private(fd, size) if size else b"")
                for fd, size in zip(returned, sizes, strict=True)
            ),
        ]
        self._wholes: list[Any] = [None] * len(self.sizes)

    def memory(self, index: int) -> memoryview:
        """The memory of a segment, one object each time. What lies on it keeps it alive, and the
        mapping cannot be closed under it."""
        return self._memories[index]

    def whole(self, index: int) -> Any:
        """One UntypedStorage over the whole segment. It keeps the mapping alive."""
        whole = self._wholes[index]
        if whole is None:
            memory = self._memories[index]
            if memory.nbytes:
                whole = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
            else:
                whole = torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage()
            self._wholes[index] = whole
        return whole
