"""Replies that no honest worker sends: valid ones, changed in their bytes or in their fields."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import msgspec

_NUMBERS = (
    *(-1, -2, 0, 1, 2, 3, 7, 8, 255, 256, 2**31, 2**32, 2**53),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
_TEXTS = ("", "cpu", "meta", "cuda:0", "float32", "dtype", "OrderedDict", "Counter", "defaultdict")
_TEXTS += ("builtins.range", "collections.OrderedDict", "os.system", "\x1b[1m", "x" * 5000)


def mutate_bytes(reply: bytes, seed: int) -> bytes:
    """A few bytes changed, removed or added."""
    chance = random.Random(seed)
    data = bytearray(reply)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(data))
        action = chance.randrange(4)
        if action == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif action == 1:
            data[place] = chance.randrange(256)
        elif action == 2:
            del data[place : place + chance.randrange(1, 9)]
        else:
            data[place:place] = chance.randbytes(chance.randrange(1, 9))
        if not data:
            break
    return bytes(data)


def mutate_fields(reply: bytes, seed: int) -> bytes:
    """A few fields of the graph's nodes and storages changed to other numbers, texts or nodes."""
    chance = random.Random(seed)
    message = msgspec.msgpack.decode(reply)
    graph = message[2]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        table = graph[chance.choice((1, 1, 1, 2))]
        if not table:
            continue
        if chance.random() < 0.1:
            chance.shuffle(table)
        elif chance.random() < 0.05:
            graph[0] = _number(chance, len(graph[1]))
        else:
            _mutate(chance, table, chance.randrange(len(table)), len(graph[1]), table)
    return msgspec.msgpack.encode(message)


def _mutate(chance: random.Random, owner: Any, place: Any, count: int, table: list[Any]) -> None:
    value = owner[place]
    if isinstance(value, list) and value and chance.random() < 0.93:
        _mutate(chance, value, chance.randrange(len(value)), count, table)
        return
    if isinstance(value, list) and chance.random() < 0.5:
        owner[place] = value * chance.choice((0, 2, 3)) if chance.random() < 0.5 else value[:-1]
        return
    makers: tuple[Callable[[], Any], ...] = (
        lambda: _number(chance, count),
        lambda: _number(chance, count),
        lambda: _number(chance, count),
        lambda: chance.choice(_TEXTS),
        lambda: copy.deepcopy(chance.choice(table)),
        lambda: chance.choice((None, True, 1.5, float("nan"), b"", b"\xff" * 9, [], {})),
    )
    owner[place] = chance.choice(makers)()


def _number(chance: random.Random, count: int) -> int:
    if chance.random() < 0.5:
        return chance.randrange(-1, count + 1)
    return min(max(chance.choice(_NUMBERS) + chance.choice((0, 0, 1, -1)), -(2**63)), 2**64 - 1)
