"""A large storage reaches the device whole, in chunks, and no buffer is filled while it is being
sent."""

from __future__ import annotations

import pytest
import torch

from isoload.placement import Placement
from isoload.staging import LARGE, copy_staged


class _Lanes:
    """A device whose copies happen only when they are waited for."""

    def __init__(self) -> None:
        self.queued: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {0: [], 1: []}
        self.pins = 0

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def pinned(self, nbytes: int) -> torch.Tensor:
        self.pins += 1
        return torch.zeros(nbytes, dtype=torch.uint8)

    def send(self, lane: int, target: torch.Tensor, buffer: torch.Tensor) -> None:
        self.queued[lane].append((target, buffer))

    def wait(self, lane: int) -> None:
        for target, buffer in self.queued[lane]:
            target.copy_(buffer)
        self.queued[lane].clear()


@pytest.mark.parametrize("nbytes", [1, 15, 16, 17, 32, 100, 160])
def test_every_byte_arrives(nbytes: int) -> None:
    data = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    lanes = _Lanes()
    copied = copy_staged(data.untyped_storage(), lanes, chunk=16)
    assert copied.equal(data)
    assert lanes.pins == 2
    assert not any(lanes.queued.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_large_storage_reaches_cuda() -> None:
    data = torch.randint(0, 256, (LARGE + 12345,), dtype=torch.uint8)
    placed = Placement("cuda:0").storage(data.untyped_storage(), "cpu")
    assert placed.device == torch.device("cuda", 0)
    there = torch.empty(0, dtype=torch.uint8, device="cuda:0").set_(placed)
    assert there.cpu().equal(data)
