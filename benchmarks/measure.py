"""Rounds of every contender, one after the other, and what else is counted: memory, loads a
second."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import isoload

from .contenders import Contender
from .files import MB, File, keep_in_cache, state_dict_file

PAGE = 4096


@dataclass
class Times:
    """Seconds of one contender on one file, a round each; `touched`: with every page read once."""

    loads: list[float] = field(default_factory=list)
    touched: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.loads)

    @property
    def touched_median(self) -> float:
        return statistics.median(self.touched)

    def summary(self) -> dict[str, float]:
        ordered = sorted(self.loads)
        return {
            "median": self.median,
            "min": ordered[0],
            "max": ordered[-1],
            "quartile 1": ordered[len(ordered) // 4],
            "quartile 3": ordered[3 * len(ordered) // 4],
            "median touched": self.touched_median,
            "rounds": len(ordered),
        }


def tensors_of(loaded: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a result: in containers, modules, and Opaques."""
    waiting = [loaded]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, torch.nn.Module):
            waiting += value.state_dict().values()
        elif isinstance(value, isoload.Opaque):
            waiting.append(value.state_dict())


def touch(loaded: Any) -> int:
    """Read one byte of every page of every tensor."""
    total = 0
    for tensor in tensors_of(loaded):
        storage = tensor.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        total += int(whole[::PAGE].sum())
    return total


def time_file(file: File, contenders: Sequence[Contender], rounds: int) -> dict[str, Times]:
    """Interleaved rounds. The first of each contender is not counted."""
    keep_in_cache(file.path)
    if file.safetensors.exists():
        keep_in_cache(file.safetensors)
    entrants = [contender for contender in contenders if contender.takes(file)]
    times = {contender.name: Times() for contender in entrants}
    for turn in range(rounds + 1):
        for contender in entrants:
            if contender.slow and turn > 3:
                continue
            loaded_in, touched_in = _once(contender, file)
            if turn:
                times[contender.name].loads.append(loaded_in)
                times[contender.name].touched.append(touched_in)
    return times


def _once(contender: Contender, file: File) -> tuple[float, float]:
    gc.collect()
    _first_time()
    time.sleep(contender.rest)
    started = time.perf_counter()
    loaded = contender.load(file)
    loaded_in = time.perf_counter() - started
    touch(loaded)
    return loaded_in, time.perf_counter() - started


def _first_time() -> None:
    """Give freed memory back to the kernel (malloc_trim(3)): a program loads a checkpoint once, and
    does not find the pages of the last result in its heap. For every contender alike."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def throughput(file: File, threads: int, seconds: float) -> float:
    """Loads a second of one Loader from so many threads, each load in a fresh worker."""
    with isoload.Loader() as loader:
        loader.load(file.path)
        end = time.perf_counter() + seconds
        counts = [0] * threads

        def run(index: int) -> None:
            while time.perf_counter() < end:
                loader.load(file.path)
                counts[index] += 1

        started = time.perf_counter()
        running = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return sum(counts) / (time.perf_counter() - started)


def slopes(
    folder: Path, contenders: Sequence[Contender], rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds a tensor and seconds a GB, by least squares over files of growing size."""
    by_count = [state_dict_file(folder, "", count, count * 64) for count in (300, 1_000, 3_000)]
    by_bytes = [state_dict_file(folder, "", 16, size * MB) for size in (16, 64, 256, 1024)]
    entrants = [contender for contender in contenders if not contender.slow]
    counted = [time_file(file, entrants, rounds) for file in by_count]
    sized = [time_file(file, entrants, rounds) for file in by_bytes]
    return {
        contender.name: {
            "seconds a tensor": _slope(
                [file.tensors for file in by_count], [row[contender.name].median for row in counted]
            ),
            "seconds a GB": _slope(
                [file.nbytes / 2**30 for file in by_bytes],
                [row[contender.name].median for row in sized],
            ),
        }
        for contender in entrants
    }


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    middle_x, middle_y = statistics.mean(xs), statistics.mean(ys)
    spread = math.fsum((x - middle_x) ** 2 for x in xs)
    return math.fsum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread
