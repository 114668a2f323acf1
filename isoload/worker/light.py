"""The entry of a light worker: one whose zygote has not imported torch, so that its fork is cheap.

It reads what the direct readers read, and leaves everything else, every failure too, to a worker
that has torch. Nothing here may import torch.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import msgspec

from isoload import manifest, wire
from isoload.preparation import Preparation
from sandbox import create_memfd

from .direct import read_direct
from .inert_direct import Lexicon, read_inert
from .reading import Reading
from .source import Source
from .vocabulary import Vocabulary

_ROOM = 3 << 20
"""Bytes: the objects of a thousand tensors."""
_OBJECT = 472
"""Bytes in each object: with its header, the largest that Python's own allocator makes. glibc's
takes the rest."""

_held: list[object] = []
"""What was read, until the worker is killed: to let go of it would take time from the reply."""
_lexicons: list[Lexicon] = []
_rehearsals: list[tuple[bytes, bytes]] = []
"""(request, checkpoint) of each."""


def main(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Read the checkpoint at `fds[0]` as `manifest.Request` asks; reply with its manifest and its
    arena, or with `manifest.Passed`.
    """
    gc.disable()  # single use, and a large graph is walked once: nothing is worth collecting
    reading = Reading()
    _held.append(reading)
    order = msgspec.msgpack.decode(request, type=manifest.Request)
    source = Source(fds[0], lead=order.lead)
    _held.append(source)
    lexicon = _lexicons[0]
    read = read_direct(source, order, lexicon.vocabulary, reading) or (
        order.fallback != "none" and read_inert(source, order, lexicon, reading)
    )
    if not read:
        return wire.encode_reply(manifest.Passed()), []
    assert reading.graph is not None
    loaded = manifest.Loaded(reading=reading.report(), graph=reading.graph)
    return wire.encode_reply(loaded), [] if reading.arena is None else [reading.arena]


def prepare(data: bytes) -> None:
    """In the zygote: learn what torch knows (a `Preparation`), and read each checkpoint of it, so
    that a fork finds everything set up."""
    preparation = msgspec.msgpack.decode(data, type=Preparation)
    _lexicons.append(Lexicon(preparation.facts, Vocabulary(preparation.facts)))
    request = manifest.Request(fallback="inert", max_output=1 << 20)
    encoded = msgspec.msgpack.encode(request)
    _rehearsals.extend((encoded, checkpoint) for checkpoint in preparation.checkpoints)
    for rehearsed in _rehearsals:
        _read(*rehearsed)
    gc.enable()


def rehearse() -> Iterator[None]:
    """In a worker that waits: read each once, then make room.

    After a fork the first use of each page of code and of memory is a page fault, hundreds for a
    small file, and one for every four kilobytes of objects. A spare has had most of them when its
    request comes."""
    for rehearsed in _rehearsals:
        _read(*rehearsed)
        yield
    _held.append(_touch())


def _read(request: bytes, checkpoint: bytes) -> None:
    fd = create_memfd("rehearsal")
    try:
        os.write(fd, checkpoint)
        _, arenas = main(request, [fd])
        for arena in arenas:
            os.close(arena)
    finally:
        _held.clear()
        os.close(fd)


def _touch() -> list[bytes]:
    """Use memory, and let go of it again but for an object here and there: where none is left, the
    allocator gives it back to the kernel."""
    return [bytes(_OBJECT) for _ in range(_ROOM // _OBJECT)][::500]
