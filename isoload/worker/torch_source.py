"""A source whose bytes are torch's storages, too."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import mmap
import warnings
from functools import cached_property

import torch

from .source import Source


class WorkerSource(Source):
    """For the readers that make tensors."""

    @cached_property
    def storage(self) -> torch.UntypedStorage:
        """The whole file as one storage; slices of it are the mapping itself. Not to be written."""
        if not self.size:
            return torch.UntypedStorage(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mapping is read-only
            return torch.frombuffer(self.view, dtype=torch.uint8).untyped_storage()

    @cached_property
    def zeros(self) -> torch.UntypedStorage:
        """As many zeros as the file has bytes. They take no memory; never to be written."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = mmap.mmap(-1, max(self.size, 1), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            return torch.frombuffer(memoryview(held), dtype=torch.uint8).untyped_storage()
