"""The whole path but for the sandbox, in one process: a file's bytes to the object in the caller's hands."""

from __future__ import annotations

import os
from typing import Any

import torch

from isoload import manifest as m
from isoload.placement import Device, Placement
from isoload.rebuild import rebuild
from isoload.segments import Segments
from isoload.worker.describe import describe
from isoload.worker.readers import read
from isoload.worker.reading import Reading
from isoload.worker.source import WorkerSource
from sandbox import create_memfd

REQUEST = m.Request(fallback="none", max_output=1 << 30)


def cross(reading: Reading, source: bytes = b"", device: Device = None, allow: Any = None) -> Any:
    """What a reading becomes on the other side."""
    graph, arena = reading.graph, None
    if graph is None:
        graph, arena = describe(reading, tensors=True, budget=REQUEST)
    reply = m.encode_reply(m.Loaded(reading.report(), graph))
    decoded = m.decode_reply(reply)
    assert isinstance(decoded, m.Loaded)
    fd = memfd(source)
    try:
        returned = [] if arena is None else [arena]
        segments = Segments(fd, len(source), returned, REQUEST.max_output)
        m.check(decoded.graph, segments.sizes)
        return rebuild(decoded.graph, segments, Placement(device), allow or {})
    finally:
        os.close(fd)
        if arena is not None:
            os.close(arena)


def cross_object(obj: Any, **options: Any) -> Any:
    """What an object becomes on the other side."""
    return cross(Reading(root=obj, location=_location, trusted_offsets=False), **options)


def _location(storage: Any) -> str:
    device: torch.device = storage.device
    return device.type


def memfd(data: bytes) -> int:
    fd = create_memfd("source")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def cross_bytes(data: bytes, *, fallback: str = "inert", **options: Any) -> tuple[Any, str]:
    """What a file becomes on the other side, and the reader that opened it."""
    fd = memfd(data)
    try:
        request = m.Request(fallback=fallback, max_output=REQUEST.max_output)
        reading = read(WorkerSource(fd), request)
        return cross(reading, data, **options), reading.reader
    finally:
        os.close(fd)
