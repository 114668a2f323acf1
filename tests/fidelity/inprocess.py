"""The whole path but for the sandbox, in one process: from a file's bytes to the caller's
object."""

from __future__ import annotations

import gc
import os
from functools import cache
from typing import Any

import msgspec
import torch

from isoload import manifest as m
from isoload import preparation, wire
from isoload.check import check_graph
from isoload.memory import map_private
from isoload.placement import Device, Placement
from isoload.rebuild import rebuild
from isoload.segments import Segments
from isoload.worker import light
from isoload.worker.describe import describe
from isoload.worker.main import main
from isoload.worker.reading import Reading
from sandbox import create_memfd

REQUEST = m.Request(fallback="none", max_output=1 << 30)


class NotOpened(Exception):
    """The worker's entry replied with a failure."""


def receive(
    reply: bytes, source: bytes, returned: list[int], device: Device = None, allow: Any = None
) -> Any:
    """The parent's half."""
    message = wire.decode_reply(reply)
    if isinstance(message, m.Failed):
        raise NotOpened(f"{message.kind}: {message.message}")
    fd = memfd(source)
    try:
        memory = memoryview(map_private(fd, len(source)) if source else b"")
        segments = Segments(memory, returned, REQUEST.max_output)
        check_graph(message.graph, segments.sizes)
        return rebuild(message.graph, segments, Placement(device), allow or {})
    finally:
        os.close(fd)


def cross_object(obj: Any, **options: Any) -> Any:
    """What an object in memory becomes on the other side."""
    reading = Reading(root=obj, location=_location, trusted_offsets=False)
    graph, arena = describe(reading, tensors=True, budget=REQUEST)
    reply = wire.encode_reply(m.Loaded(reading.report(), graph))
    returned = [] if arena is None else [arena]
    try:
        return receive(reply, b"", returned, **options)
    finally:
        for fd in returned:
            os.close(fd)


def cross_bytes(data: bytes, *, fallback: str = "inert", **options: Any) -> tuple[Any, str]:
    """What a file becomes on the other side, and the reader that opened it."""
    safe = [*options.get("allow", ())]
    request = m.Request(fallback=fallback, max_output=REQUEST.max_output, safe_globals=safe)
    source = memfd(data)
    collecting = gc.isenabled()
    try:
        reply, returned = _light()(msgspec.msgpack.encode(request), [source])
        if isinstance(wire.decode_reply(reply), m.Passed):
            reply, returned = main(msgspec.msgpack.encode(request), [source])
    finally:
        os.close(source)
        if collecting:
            gc.enable()  # a worker is used once, and turns it off
    try:
        obj = receive(reply, data, returned, **options)
    finally:
        for fd in returned:
            os.close(fd)
    message = wire.decode_reply(reply)
    return obj, message.reading.reader


@cache
def _light() -> Any:
    """The entry of a worker without torch."""
    light.prepare(preparation.prepare())
    return light.main


def _location(storage: Any) -> str:
    device: torch.device = storage.device
    return device.type


def memfd(data: bytes) -> int:
    fd = create_memfd("source")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd
