"""Copying a large storage to a CUDA device: pinned halves, so that one fills while the other is
sent.

A pageable copy is staged by the driver, one chunk after the other. Two pinned buffers on two
streams overlap reading the mapping (page faults included) with the transfer.
"""

from __future__ import annotations

from typing import Any

import torch

LARGE = 64 << 20
"""Bytes from which staging is worth its two pinned buffers."""

CHUNK = 16 << 20
"""Bytes of one pinned buffer."""


def copy_to_cuda(storage: Any, device: torch.device, chunk: int = CHUNK) -> Any:
    """A copy of a CPU UntypedStorage on the device, `chunk` bytes at a time; complete when this
    returns."""
    source: Any = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    nbytes = source.numel()
    target: Any = torch.empty(nbytes, dtype=torch.uint8, device=device)
    pinned = min(chunk, nbytes)
    buffers = [
        torch.empty(pinned, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(2)
    ]
    streams = _streams(device)
    for number, (here, there) in enumerate(
        zip(source.split(chunk), target.split(chunk), strict=True)
    ):
        stream = streams[number % 2]
        stream.synchronize()  # what was in the buffer has arrived
        buffer = buffers[number % 2][: here.numel()].copy_(here)
        with torch.cuda.stream(stream):
            there.copy_(buffer, non_blocking=True)
    for stream in streams:
        stream.synchronize()
    return target.untyped_storage()


def _streams(device: torch.device) -> list[Any]:
    """Two, after what is queued on the current one: the target's block may have been freed with
    work on it still to be done."""
    new: Any = torch.cuda.Stream
    streams = [new(device) for _ in range(2)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream(device))
    return streams
