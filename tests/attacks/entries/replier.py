"""In the place of isoload's worker: sends whatever the "file" says that it should."""

from __future__ import annotations

import fcntl
import importlib
import os

import msgspec

from tests.attacks.entries import resources, shared, wire, words

PRELOADED = (resources, wire, words)


def main(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Send {"reply", "segments"}, or do {"call": "module:function", "request"}."""
    del request
    order = msgspec.msgpack.decode(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
    if "call" in order:
        module, _, function = order["call"].partition(":")
        entry = getattr(importlib.import_module(f"tests.attacks.entries.{module}"), function)
        reply: tuple[bytes, list[int]] = entry(order["request"], fds)
        return reply
    return order["reply"], [_segment(segment, fds) for segment in order["segments"]]


def _segment(segment: str | bytes, fds: list[int]) -> int:
    if segment == "source":
        return fds[0]
    if isinstance(segment, str):
        return shared.SEGMENTS[segment](fds)
    fd = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, segment)
    fcntl.fcntl(fd, shared.F_ADD_SEALS, shared.SEAL | shared.SHRINK | shared.GROW | shared.WRITE)
    return fd
