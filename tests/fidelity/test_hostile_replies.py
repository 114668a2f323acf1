"""A reply that no honest worker sends gives ManifestError or a sound object: never a crash, never
late."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoload import manifest as m
from isoload import wire
from isoload.check import check_graph
from isoload.errors import CheckpointError
from isoload.memory import map_private
from isoload.placement import Placement
from isoload.rebuild import rebuild
from isoload.segments import Segments
from isoload.worker.describe import describe
from isoload.worker.reading import Reading
from isoload.worker.recorded import Recorded

from .graphs import Maker
from .hostile import mutate_bytes, mutate_fields
from .inprocess import REQUEST, memfd
from .test_values import PLAIN

REPLIES = int(os.environ.get("ISOLOAD_TESTS_REPLIES", "3000"))


@functools.lru_cache(maxsize=64)
def valid(seed: int) -> tuple[bytes, bytes]:
    """A reply and the bytes of its arena."""
    chance = random.Random(seed)
    extra = chance.sample([*PLAIN.values()], 5)
    root = [
        Maker(seed, 25).graph(),
        extra,
        Recorded("a.B", (1,), {"k": [2]}),
        torch.nn.Linear(2, 2),
    ]
    reading = Reading(root=root, location=lambda storage: storage.device.type)
    graph, arena = describe(reading, tensors=True, budget=REQUEST)
    data = b""
    if arena is not None:
        data = os.pread(arena, os.fstat(arena).st_size, 0)
        os.close(arena)
    return wire.encode_reply(m.Loaded(reading.report(), graph)), data


def receive(reply: bytes, arena: bytes) -> Any:
    """The parent's half, on ordinary memory."""
    message = wire.decode_reply(reply)
    if isinstance(message, m.Failed):
        return None
    fds = [memfd(b"x" * 100), memfd(arena)]
    try:
        segments = _Unsealed(memoryview(map_private(fds[0], 100)))
        segments.add(fds[1], len(arena))
        check_graph(message.graph, segments.sizes)
        return rebuild(message.graph, segments, Placement("cpu"))
    finally:
        for fd in fds:
            os.close(fd)


class _Unsealed(Segments):
    """Segments of this test's own making."""

    def add(self, fd: int, size: int) -> None:
        self.sizes = (*self.sizes, size)
        self._memories.append(memoryview(map_private(fd, size) if size else b""))
        self._wholes.append(None)


def touch(root: Any) -> None:
    """Read what the object's tensors and arrays claim to hold."""
    seen: set[int] = set()
    stack = [root]
    while stack and len(seen) < 3_000:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            _read(value.detach())
        elif isinstance(value, np.ndarray):
            if value.size < 1_000_000:
                value.copy()
        elif isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack += value


def _read(value: torch.Tensor) -> None:
    if value.is_meta or value.is_nested or value.numel() > 1_000_000:
        return
    with contextlib.suppress(NotImplementedError):  # torch.int7 and its like have no operation
        if value.layout is not torch.strided:
            value.to_dense()
        elif value.is_quantized:
            value.int_repr() if value.dtype in (torch.qint8, torch.quint8, torch.qint32) else None
        else:
            value.clone()


@settings(
    max_examples=REPLIES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(graph=st.integers(0, 40), seed=st.integers(0, 2**48), by_bytes=st.booleans())
def test_a_changed_reply_is_refused_or_harmless(graph: int, seed: int, by_bytes: bool) -> None:
    reply, arena = valid(graph)
    changed = (mutate_bytes if by_bytes else mutate_fields)(reply, seed)
    started = time.thread_time()
    with contextlib.suppress(m.ManifestError, CheckpointError):
        touch(receive(changed, arena))
    assert time.thread_time() - started < 5


@settings(max_examples=REPLIES // 10, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    try:
        message = wire.decode_reply(data)
    except m.ManifestError:
        return
    assert isinstance(message, (m.Loaded, m.Failed))
