"""The ratios as one picture: a bar for each contender on each file, torch.load at 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_SHOWN = ("torch.load mmap", "safetensors", "isoload", "isoload spare", "isoload mmap")
_WIDTH = 0.16


def plot(results: Mapping[str, Any], path: str) -> None:
    """Write a PNG."""
    files = list(results["times"])
    figure, axes = pyplot.subplots(figsize=(12, 5), layout="constrained")
    for place, name in enumerate(_SHOWN):
        at, heights = [], []
        for index, file in enumerate(files):
            row = results["times"][file]
            if name in row:
                at.append(index + (place - len(_SHOWN) / 2 + 0.5) * _WIDTH)
                heights.append(row[name]["median"] / row["torch.load"]["median"])
        axes.bar(at, heights, _WIDTH, label=name)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="torch.load")
    axes.set_yscale("log")
    axes.set_ylabel("time, of torch.load's")
    axes.set_xticks(
        range(len(files)),
        [file.replace(", ", ",\n").replace(" small", "\nsmall") for file in files],
    )
    axes.legend(ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
