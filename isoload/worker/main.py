"""The entry that the sandbox calls: a request in, a manifest out.

Whatever goes wrong becomes a `manifest.Failed` with a short printable message, never a traceback.
"""

from __future__ import annotations

import gc
import io
import os

import msgspec
import torch

from isoload import manifest, wire
from sandbox import printable

from .archive import first_line
from .describe import describe
from .readers import read
from .reading import MAX_MESSAGE, Failure, Reading, is_out_of_memory
from .torch_source import WorkerSource

_held: list[object] = []
"""What was read, until the worker is killed: to let go of it would take time from the reply."""


def main(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Read the checkpoint at `fds[0]` as `manifest.Request` asks; reply with its manifest and its
    arena.
    """
    reading = Reading()
    _held.append(reading)
    try:
        order = msgspec.msgpack.decode(request, type=manifest.Request)
        source = WorkerSource(fds[0], lead=order.lead)
        _held.append(source)
        return _answer(order, source, reading)
    except BaseException as error:
        return wire.encode_reply(_failed(error, reading)), []


def _answer(
    request: manifest.Request, source: WorkerSource, reading: Reading
) -> tuple[bytes, list[int]]:
    gc.disable()  # single use, and a large graph is walked once: nothing is worth collecting
    read(source, request, reading)
    if reading.graph is None:
        reading.graph, reading.arena = describe(reading, tensors=request.tensors, budget=request)
    loaded = manifest.Loaded(reading=reading.report(), graph=reading.graph)
    return wire.encode_reply(loaded), [] if reading.arena is None else [reading.arena]


def _failed(error: BaseException, reading: Reading) -> manifest.Failed:
    kind, message = "damaged", f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, Failure):
        kind, message = error.kind, error.message
    elif is_out_of_memory(error):
        kind, message = "limit:memory", "the worker ran out of memory"
    return manifest.Failed(
        kind=kind, message=printable(message, MAX_MESSAGE), reading=reading.report()
    )


def forget() -> None:
    """Let go of all that was read: for what goes on to live."""
    _held.clear()


def warm_up() -> None:
    """Open one tiny trusted file of each common kind, so that a fork finds everything imported and
    set up.
    """
    torch.set_num_threads(1)
    # One for each reader: direct, inert, torch's own weights_only. That one last: after a file that
    # it refuses, torch keeps the map_location, and that the mapping and its descriptor. A worker's
    # descriptors are closed behind Python's back, and the number would be another file's by the
    # time it is let go of.
    values = (
        {"weight": torch.zeros(2, 2), "steps": 1},
        {"weight": torch.zeros(1), "range": range(2)},
        {"weight": torch.zeros(1, dtype=torch.complex64).conj()},
    )
    for zipped in (True, False):
        for value in values:
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=zipped)
            fd = os.memfd_create("warm-up", os.MFD_CLOEXEC)
            os.write(fd, file.getvalue())
            order = manifest.Request(fallback="inert", max_output=1 << 20)
            _, arenas = main(msgspec.msgpack.encode(order), [fd])
            for arena in (fd, *arenas):
                os.close(arena)
    forget()
    gc.enable()
    gc.collect()  # what was read still holds its mapping, in a cycle
