"""The memory that a graph points into: the source, and the arena that came back from the worker.

Each segment is mapped whole, private and writable (copy on write), and lives as long as a storage
of it. A segment from the worker is mapped only after the sandbox has found it sealed and real. No
number of a manifest is used here.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from typing import Any

import torch

from sandbox import check_segment

from .manifest import ManifestError


class Segments:
    """The source (index 0), then the segments that the worker sent. `sizes` are bytes.

    The descriptors stay the caller's, who may close them afterwards. Raises `sandbox.WorkerError`
    for a segment that may not be mapped, ManifestError for one too many.
    """

    def __init__(
        self, source: int, size: int, returned: Sequence[int] = (), max_bytes: int = 0
    ) -> None:
        if len(returned) > 1:
            raise ManifestError(f"{len(returned)} segments came back instead of one arena")
        sizes = [size, *(check_segment(fd, max_bytes) for fd in returned)]
        self.sizes: tuple[int, ...] = tuple(sizes)
        self._mappings = [
            map_private(fd, nbytes) if nbytes else None
            for fd, nbytes in zip((source, *returned), sizes, strict=True)
        ]
        self._memories: dict[int, memoryview] = {}
        self._wholes: list[Any] = [None] * len(sizes)

    def mapping(self, index: int) -> mmap.mmap | None:
        """The segment's memory; None where it is empty."""
        return self._mappings[index]

    def memory(self, index: int) -> memoryview:
        """The memory of a segment that is not empty, one object each time. What lies on it keeps it
        alive, and the mapping cannot be closed under it."""
        memory = self._memories.get(index)
        if memory is None:
            mapping = self._mappings[index]
            if mapping is None:
                raise ManifestError("an empty segment that holds something")
            memory = self._memories[index] = memoryview(mapping)
        return memory

    def whole(self, index: int) -> Any:
        """One UntypedStorage over the whole segment. It keeps the mapping alive."""
        whole = self._wholes[index]
        if whole is None:
            if self._mappings[index] is None:
                whole = torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage()
            else:
                memory = self.memory(index)
                whole = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
            self._wholes[index] = whole
        return whole


def map_private(fd: int, size: int) -> mmap.mmap:
    """Map a descriptor copy on write: what is written stays in this process (mmap(2),
    MAP_PRIVATE)."""
    keep: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    return mmap.mmap(
        fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, **keep
    )
