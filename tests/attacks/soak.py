"""Thousands of loads from many threads, honest, hostile, and killed at random moments.

    python -m tests.attacks.soak [COUNT [THREADS]]          5,000 loads from 8 threads by default

Ends with status 1, and says what it was, if anything is left behind, or a call did not end in time.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil
import torch

import isoload
from tests.attacks import outside
from tests.attacks.conftest import calling, loaded, replying, taken_over_loader

WALL = 20.0
LATE = WALL + 30.0
"""Seconds after which a call counts as one that hangs; a loaded machine is slow, not stuck."""
GROWTH = 64 << 20
"""Bytes by which resident memory may differ: what allocators keep."""


@dataclass
class Outcome:
    """How the calls ended, by name, and the longest one in seconds."""

    ends: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, end: str, seconds: float) -> None:
        with self.lock:
            self.ends[end] += 1
            self.longest = max(self.longest, seconds)


def honest() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(4096.0), "steps": [1, 2.0, "x"]}, buffer)
    return buffer.getvalue()


HONEST = honest()
HOSTILE = (
    calling("wire:garbage", b"\xff" * 100),
    calling("wire:descriptors", b"253"),
    calling("wire:end", b"0"),
    calling("wire:quit_at_random", b"0.02"),
    calling("wire:reply_then_crash", b"x"),
    calling("wire:large_reply", b"5000000"),
    calling("wire:flood", b"\0"),
    calling("resources:daemons", b"x"),
    calling("words:raise_text", b"100000"),
    calling("shared:linger"),
    replying(loaded(1), "future write"),
    replying(loaded(1), "sparse"),
    replying(loaded(1), "fifo"),
    replying(b"\x93" * 1000),
)
SLOW = (calling("resources:fork_bomb"), calling("resources:hold"), calling("wire:slow", b"\0"))


def good_reply() -> bytes:
    from isoload import manifest as m  # noqa: PLC0415 - beside its only use

    storage = m.Storage(m.ARENA, 0, 4096, "cpu")
    node = m.Tensor(0, 0, 0, [1024], [1])
    return replying(loaded(node, storages=[storage]), torch.ones(1024).numpy().tobytes())


def _one(loader: isoload.Loader, evil: isoload.Loader, chance: random.Random) -> str:
    kind = chance.random()
    limits = isoload.Limits(wall=WALL, output=1 << 20, processes=16, memory=256 << 20)
    policy = isoload.Policy(limits=limits)
    if kind < 0.4:
        assert loader.load(HONEST, "cpu")["weight"].sum() == 8386560
        return "honest"
    if kind < 0.5:
        assert evil.load(GOOD, "cpu", policy=policy).sum() == 1024
        return "honest"
    data = chance.choice(HOSTILE)
    if kind > 0.95:
        data = chance.choice(SLOW)
        policy = policy.replace(limits=isoload.Limits(wall=0.2, processes=16, memory=256 << 20))
    evil.load(data, "cpu", policy=policy)
    return "hostile, returned"


GOOD = good_reply()


def _kill_somebody(zygotes: set[int], chance: random.Random) -> None:
    """A worker, wherever it is in its life, or the sentinel."""
    with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
        below = psutil.Process(chance.choice([*zygotes])).children(recursive=True)
        if below:
            os.kill(chance.choice(below).pid, signal.SIGKILL)


def soak(count: int, threads: int, *, kill: bool = True, seed: int = 0) -> Outcome:
    """Make the calls; AssertionError if one is late, or raises what is no IsoloadError."""
    outcome = Outcome()
    unexpected: list[BaseException] = []
    numbers = iter(range(count))
    lock = threading.Lock()
    over = threading.Event()
    with isoload.Loader(spares=1) as loader, taken_over_loader(spares=1) as evil:
        outside.warm(loader)
        outside.warm(evil)
        boxes = [box for it in (loader, evil) for box in (it._boxes.light, it._boxes.torch)]
        zygotes = {box._zygote.pid for box in boxes if box._zygote is not None}

        def work(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            while not unexpected:
                with lock:
                    if next(numbers, None) is None:
                        return
                started = time.monotonic()
                try:
                    end = _one(loader, evil, chance)
                except isoload.InternalError as error:
                    unexpected.append(error)
                    return
                except isoload.IsoloadError as error:
                    end = type(error).__name__
                except BaseException as error:
                    unexpected.append(error)
                    return
                outcome.add(end, time.monotonic() - started)

        def murder() -> None:
            chance = random.Random(seed)
            while not over.wait(chance.random() / 5):
                _kill_somebody(zygotes, chance)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        killer = threading.Thread(target=murder)
        for thread in workers:
            thread.start()
        if kill:
            killer.start()
        for thread in workers:
            thread.join()
        over.set()
        if kill:
            killer.join()
    if unexpected:
        raise AssertionError(f"not an IsoloadError: {unexpected[0]!r}") from unexpected[0]
    assert outcome.longest < LATE, f"a call took {outcome.longest:.1f} s"
    return outcome


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum(1 for _ in maps)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    soak(min(count, 200), threads)  # what allocators and imports keep, they keep by now
    before, memory, maps = outside.settled(), resident(), mappings()
    started = time.monotonic()
    outcome = soak(count, threads, seed=1)
    seconds = time.monotonic() - started
    changed = outside.changes(before)
    grown = resident() - memory
    print(
        f"{count} loads from {threads} threads in {seconds:.1f} s; longest {outcome.longest:.2f} s"
    )
    for end, number in outcome.ends.most_common():
        print(f"  {number:6} {end}")
    print(f"  memory {grown / 1e6:+.1f} MB, mappings {mappings() - maps:+d}")
    print(f"  left behind: {changed or 'nothing'}")
    return 1 if changed or grown > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
