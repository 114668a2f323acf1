"""The inert unpickler: plain values and tensors for real, everything else as a record of what was
asked.

`inert_machine` says what it does with a name, a call and a state; here are the tensors.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from typing import Any

import torch

from . import brief, opcodes
from .context import Context
from .inert_machine import InertMachine
from .makers.table import MAKERS
from .makers.tensors import build_tensor
from .reading import Damaged, Refused
from .recorded import Recorded
from .torch_names import TORCH_NAMES

MAX_NESTING = 4
"""Pickles within pickles (torch.storage._load_from_bytes)."""

Persistent = Callable[[object], object]

brief.SHAPED[torch.Tensor] = "tensor"


def _no_persistent(saved_id: object) -> object:
    raise Damaged(f"it has a persistent id outside a torch file: {brief.brief((saved_id,))}")


class InertUnpickler(InertMachine):
    """Reads pickles of one file. `persistent` gives what a persistent id stands for."""

    names = TORCH_NAMES
    makers = MAKERS

    def __init__(
        self,
        data: bytes | mmap,
        context: Context,
        persistent: Persistent = _no_persistent,
        position: int = 0,
    ) -> None:
        super().__init__(data, context, position)
        self._persistent = persistent

    def load(self) -> Any:
        """The next object of the stream."""
        return opcodes.run(self)

    def persistent_load(self, saved_id: object) -> object:
        return self._persistent(saved_id)

    def nested(self, data: bytes) -> object:
        """The object in bytes that torch.save wrote, read inertly."""
        from .formats.within import read_within  # noqa: PLC0415 - the formats read by this reader

        if self.context.depth >= MAX_NESTING:
            raise Refused("it has pickles within pickles, too deep")
        return read_within(data, self.context)

    def note_device(self, tensor: torch.Tensor, device: str) -> None:
        self.context.tags.note(tensor.untyped_storage(), device)

    def _build(self, target: Any, state: Any) -> object:
        if isinstance(target, torch.Tensor):
            build_tensor(self, target, state)
            return target
        return super()._build(target, state)


__all__ = ["Context", "InertUnpickler", "Persistent", "Recorded"]
