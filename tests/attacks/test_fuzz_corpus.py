"""What fuzzing has found once, and a little of it anew in each run."""

from __future__ import annotations

import random
import resource

import psutil
import pytest

from tests.attacks import fuzzing

FOUND = sorted(path for path in fuzzing.CORPUS.iterdir() if path.suffix != ".md")
ROUNDS = 1500
MEMORY = 1 << 30  # bytes more than the test process has


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_once_ends_well(path):
    """Lines 4 and 27: each input that ended in no expected error, or took gigabytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = psutil.Process().memory_info().data + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        fuzzing.one(path.read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.parametrize("name", fuzzing.seeds())
def test_the_seeds_are_good(name):
    """Line 4: a seed that is refused would lead nowhere."""
    source, arena = fuzzing.memfd(fuzzing.ARENA), fuzzing.memfd(fuzzing.ARENA)
    with fuzzing.closing(source, arena):
        fuzzing.parent(fuzzing.seeds()[name], [source, arena])


def test_a_reply_changed_at_random_ends_well():
    """Lines 4 and 27: values of a reply with every kind of node, changed one to five at a time."""
    chance = random.Random(2)
    data = fuzzing.seeds()["everything"]
    for _ in range(ROUNDS):
        fuzzing.one(fuzzing.mutate(data, 1 << 20, chance.getrandbits(32)))


def test_bytes_changed_at_random_end_well():
    """Lines 4 and 25: bytes of it changed, cut and doubled."""
    chance = random.Random(3)
    data = fuzzing.seeds()["everything"]
    for _ in range(ROUNDS):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        fuzzing.one(bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])]))
