"""What a light zygote is given to begin with: torch's facts, and checkpoints of ours to read while
a spare waits. The caller's process has torch, and makes both.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import msgspec

from .torch_facts import Facts, gather

_TENSORS = 64


class Preparation(msgspec.Struct, frozen=True):
    """Plain data, from the parent to its own zygote."""

    facts: Facts
    checkpoints: list[bytes]


def prepare() -> bytes:
    """For the torch of this process. A `Preparation`, encoded."""
    # In a thread of its own, where no mode or device of the caller's answers for torch.
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(_encoded).result()


def _encoded() -> bytes:
    return msgspec.msgpack.encode(Preparation(gather(), _checkpoints()))


def _checkpoints() -> list[bytes]:
    import torch  # noqa: PLC0415 - who only decodes a preparation must not import it

    state = {f"layers.{i}.weight": torch.zeros(2, 2) for i in range(_TENSORS)}
    module = SimpleNamespace(  # as a pickled module is made, of a class that torch refuses
        training=True,
        _parameters=OrderedDict(weight=torch.nn.Parameter(torch.zeros(2, 2))),
        _buffers=OrderedDict(mean=torch.zeros(2)),
        _modules=OrderedDict(),
        _hooks=set(),
    )
    values = (state, {"weight": torch.zeros(1), "steps": 1}, module)
    checkpoints = []
    for value, zipped in zip(values, (True, False, True), strict=True):
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=zipped)
        checkpoints.append(file.getvalue())
    return checkpoints
