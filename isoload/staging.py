"""Copying a large storage to a CUDA device: pinned halves, so that one fills while the other is
sent.

A pageable copy is staged by the driver, one chunk after the other. Two pinned buffers on two
streams overlap reading the mapping (page faults included) with the transfer.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

LARGE = 64 << 20
"""Bytes from which staging is worth its two pinned buffers."""

CHUNK = 16 << 20
"""Bytes of one pinned buffer."""


class Backend(Protocol):
    """What staging asks of a device. Tensors are of uint8, one dimension."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory on the device."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Memory of the host that the device can read by itself."""

    def send(self, lane: int, target: torch.Tensor, buffer: torch.Tensor) -> None:
        """Begin to copy a pinned buffer, in order within its lane."""

    def wait(self, lane: int) -> None:
        """Return when all that was sent on the lane has arrived."""


class CudaBackend:
    """One CUDA device, two streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Any = torch.cuda.Stream
        self._streams = [stream(device) for _ in range(2)]

    def allocate(self, nbytes: int) -> torch.Tensor:
        target = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        # The block may have been freed on the current stream with work still queued on it.
        current = torch.cuda.current_stream(self._device)
        for stream in self._streams:
            stream.wait_stream(current)
        return target

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def send(self, lane: int, target: torch.Tensor, buffer: torch.Tensor) -> None:
        with torch.cuda.stream(self._streams[lane]):
            target.copy_(buffer, non_blocking=True)

    def wait(self, lane: int) -> None:
        self._streams[lane].synchronize()


def copy_to_cuda(storage: Any, device: torch.device) -> Any:
    """A copy of a CPU UntypedStorage on the device; complete when this returns."""
    return copy_staged(storage, CudaBackend(device)).untyped_storage()


def copy_staged(storage: Any, backend: Backend, chunk: int = CHUNK) -> torch.Tensor:
    """A copy of the storage's bytes on the backend's device, chunk by chunk on two lanes in
    turn."""
    source = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    nbytes = source.numel()
    target = backend.allocate(nbytes)
    buffers = [backend.pinned(min(chunk, nbytes)) for _ in range(2)]
    for number, start in enumerate(range(0, nbytes, chunk)):
        lane = number % 2
        end = min(start + chunk, nbytes)
        if number >= 2:
            backend.wait(lane)
        buffer = buffers[lane][: end - start]
        buffer.copy_(source[start:end])
        backend.send(lane, target[start:end], buffer)
    for lane in range(2):
        backend.wait(lane)
    return target
