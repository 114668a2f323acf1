"""What a waiting worker does before its request comes."""

from __future__ import annotations

import os

from isoload.worker import rehearsal


def test_a_rehearsal_leaves_no_descriptor() -> None:
    rehearsal.prepare()
    list(rehearsal.rehearse())
    before = sorted(os.listdir("/proc/self/fd"))
    list(rehearsal.rehearse())
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_warming_up_leaves_no_descriptor() -> None:
    rehearsal.prepare()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert "memfd:warm-up" not in maps.read()


def test_a_rehearsal_makes_nothing_that_was_prepared_again() -> None:
    rehearsal.prepare()
    assert rehearsal._orders() is rehearsal._orders()
