"""A worker's own read of tiny trusted checkpoints, while it waits for its request.

After a fork the first use of each page of code and of memory is a page fault: some 700 of them for
a small file, two milliseconds, and one for every four kilobytes of objects. A spare has had most of
them when its request comes. Nothing of a user's file is here.
"""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Iterator
from functools import cache

import msgspec
import torch

from isoload import manifest
from sandbox import create_memfd

from .main import forget, main, warm_up

_TENSORS = 64
_ROOM = 3 << 20
"""Bytes: the objects of a thousand tensors."""
_OBJECT = 472
"""Bytes in each object: with its header, the largest that Python's own allocator makes. glibc's
takes the rest."""


_held: list[list[bytes]] = []


@cache
def _orders() -> list[tuple[bytes, bytes]]:
    """(checkpoint, request) of each, made once, before the fork."""
    state = {f"layers.{i}.weight": torch.zeros(2, 2) for i in range(_TENSORS)}
    module = torch.nn.BatchNorm1d(2)
    orders = []
    for value in (state, module):
        file = io.BytesIO()
        torch.save(value, file)
        request = manifest.Request(fallback="inert", max_output=1 << 20)
        orders.append((file.getvalue(), msgspec.msgpack.encode(request)))
    return orders


def prepare() -> None:
    """In the zygote: open one file of each common kind, and make the checkpoints of `rehearse`."""
    warm_up()
    _orders()


def rehearse() -> Iterator[None]:
    """In a worker that waits: read each once; then make room."""
    for checkpoint, request in _orders():
        fd = create_memfd("rehearsal")
        try:
            os.write(fd, checkpoint)
            main(request, [fd])
            forget()
            gc.collect()  # what was read still holds its mapping, in a cycle
        finally:
            os.close(fd)
        yield
    _held.append(_touch())


def _touch() -> list[bytes]:
    """Use memory, and let go of it again but for an object here and there: where none is left, the
    allocator gives it back to the kernel."""
    return [bytes(_OBJECT) for _ in range(_ROOM // _OBJECT)][::500]
