"""The results as tables for people, and the bars that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Results = Mapping[str, Any]

REFERENCE = "torch.load"


def times_table(results: Results) -> str:
    """Milliseconds, and in brackets the ratio to torch.load, of each contender on each file."""
    names = results["contenders"]
    lines = ["| file | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for file, row in results["times"].items():
        reference = row[REFERENCE]["median"]
        cells = [_cell(row.get(name), reference) for name in names]
        lines.append(f"| {file} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(summary: Mapping[str, float] | None, reference: float) -> str:
    if summary is None:
        return "-"
    median = summary["median"]
    spread = (summary["quartile 3"] - summary["quartile 1"]) / 2
    return f"{_ms(median)} ±{_ms(spread)} ({median / reference:.2f})"


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def touched_table(results: Results) -> str:
    """The same with every page of the result read once."""
    names = [name for name in results["contenders"] if name not in ("worker by hand", "bwrap")]
    lines = ["| file, touched | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for file, row in results["times"].items():
        cells = [_ms(row[name]["median touched"]) if name in row else "-" for name in names]
        lines.append(f"| {file} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def other_table(results: Results) -> str:
    """Slopes, throughput, memory and the cold start."""
    lines = ["| contender | µs a tensor | ms a GB |", "|---|---|---|"]
    for name, slope in results["slopes"].items():
        tensor, gigabyte = slope["seconds a tensor"] * 1e6, slope["seconds a GB"] * 1e3
        lines.append(f"| {name} | {tensor:.1f} | {gigabyte:.0f} |")
    lines += ["", "| threads | loads a second, 80 KB |", "|---|---|"]
    lines += [f"| {count} | {rate:.0f} |" for count, rate in results["throughput"].items()]
    columns = {"peak": "peak", "held": "with the result", "caller": "caller alone, peak"}
    columns |= {"worker": "worker alone, all at its peak", "spare": "each spare"}
    lines += ["", "| memory over what was held before, MB | " + " | ".join(columns.values()) + " |"]
    lines += ["|---|" + "---|" * len(columns)]
    for name, measured in results["memory"].items():
        used = measured or {}
        shown = name if measured else f"{name} (no memory cgroup can be made here)"
        cells = [f"{used[key] / 2**20:.0f}" if key in used else "" for key in columns]
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    lines += ["", "| cold: a new process | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in results["cold"].items()]
    return "\n".join(lines)


def _ratio(file: str, name: str, reference: str = REFERENCE) -> Callable[[Results], float]:
    return lambda results: _median(results, file, name) / _median(results, file, reference)


def _over(file: str, name: str, reference: str = REFERENCE) -> Callable[[Results], float]:
    return lambda r: (_median(r, file, name) - _median(r, file, reference)) * 1e3


def _median(results: Results, file: str, name: str) -> float:
    return float(results["times"][file][name]["median"])


def _megabytes(name: str, key: str = "peak") -> Callable[[Results], float]:
    return lambda results: results["memory"][name][key] / 2**20


BARS: dict[str, tuple[Callable[[Results], float], float]] = {
    "1 GB, no spare: of torch.load": (_ratio("1 GB, 16 tensors", "isoload"), 0.70),
    "4 GB, no spare: of torch.load": (_ratio("4 GB, 300 tensors", "isoload"), 0.70),
    **{
        f"{size}, mmap, {state}: ms over torch.load(mmap=True)": (
            _over(file, name, "torch.load mmap"),
            12,
        )
        for size, file in (("1 GB", "1 GB, 16 tensors"), ("4 GB", "4 GB, 300 tensors"))
        for state, name in (("a spare ready", "isoload spare mmap"), ("no spare", "isoload mmap"))
    },
    "80 KB, a spare ready: ms over torch.load": (_over("80 KB, 20 tensors", "isoload spare"), 4),
    "80 KB, no spare: ms over torch.load": (_over("80 KB, 20 tensors", "isoload"), 12),
    "80 KB: of the worker by hand": (
        _ratio("80 KB, 20 tensors", "isoload spare", "worker by hand"),
        1 / 60,
    ),
    "1,000 tensors, a spare ready: of torch.load": (
        _ratio("1,000 small tensors", "isoload spare"),
        0.3,
    ),
    "10,000 tensors, a spare ready: of torch.load": (
        _ratio("10,000 small tensors", "isoload spare"),
        0.3,
    ),
    "legacy 200 MB, a spare ready: of torch.load": (_ratio("legacy, 200 MB", "isoload spare"), 0.9),
    "pickled module, a spare ready: of torch.load": (
        _ratio("pickled module, 25 MB", "isoload spare"),
        1.0,
    ),
    "cold: of the import of torch": (
        lambda results: (
            results["cold"]["import isoload, first load"] / results["cold"]["import torch"]
        ),
        1.3,
    ),
    "1 GB: peak MB over 1.1 of the file": (
        lambda results: _megabytes("1 GB, isoload")(results) - 1.1 * 1024,
        80,
    ),
    "1 GB, mmap: peak MB": (_megabytes("1 GB, isoload mmap"), 80),
    "a spare: MB": (_megabytes("a spare", "spare"), 15),
    "80 KB: loads a second, the best": (lambda r: -max(r["throughput"].values()), -100),
}
"""What is asked: (what was measured, at most). A number to exceed is negative on both sides."""


def bars_table(results: Results) -> str:
    """Each bar, what was measured, and whether it is met."""
    lines = ["| bar | measured | asked | |", "|---|---|---|---|"]
    for name, (measure, bar) in BARS.items():
        try:
            value = measure(results)
        except (KeyError, TypeError):
            lines.append(f"| {name} | not measured | {abs(bar):.3g} | |")
            continue
        met = "met" if value <= bar else "**missed**"
        sign = 1 if bar > 0 else -1
        lines.append(f"| {name} | {sign * value:.3g} | {abs(bar):.3g} | {met} |")
    return "\n".join(lines)
