"""`python -m benchmarks [--quick]`: make the files, run every contender, write docs/benchmarks.*"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from . import memory
from .contenders import cold, contenders
from .files import make_files
from .measure import slopes, throughput, time_file
from .plot import plot
from .table import bars_table, other_table, times_table, touched_table

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no 4 GB file, fewer rounds")
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds of each (default 15, quick 5)"
    )
    parser.add_argument(
        "--only", default="", help="only files whose name holds this; writes nothing"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "isoload-benchmarks",
        help="where the files are made and kept (about 12 GB; quick: 4 GB)",
    )
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 15)
    results = run(options.folder, rounds, quick=options.quick, only=options.only)
    if not options.only:
        write(results)


def run(folder: Path, rounds: int, *, quick: bool, only: str) -> dict[str, Any]:
    """Everything, in one run."""
    for package in ("isoload", "sandbox"):  # as pip does at an installation
        compileall.compile_dir(DOCS.parent / package, quiet=2)
    files = make_files(folder, quick=quick)
    results: dict[str, Any] = {"host": host(rounds), "times": {}}
    with contenders() as entrants:
        results["contenders"] = [contender.name for contender in entrants]
        for file in files:
            if only in file.name:
                say(f"{file.name} …")
                few = max(5, rounds // 3) if file.nbytes > 1 << 28 else rounds
                times = time_file(file, entrants, few)
                results["times"][file.name] = {n: t.summary() for n, t in times.items()}
        print(times_table(results), flush=True)
        if only:
            return results
        say("slopes …")
        results["slopes"] = slopes(folder, entrants, max(3, rounds // 3))
    small = files[0]
    say("throughput …")
    seconds = 2.0 if quick else 5.0
    results["throughput"] = {str(n): throughput(small, n, seconds) for n in (1, 2, 4, 8)}
    say("memory …")
    large = next(file for file in files if file.name.startswith("1 GB"))
    results["memory"] = {
        "1 GB, torch.load": memory.peak(large, "torch"),
        "1 GB, isoload": memory.peak(large, "isoload"),
        "1 GB, isoload mmap": memory.peak(large, "isoload mmap"),
        "a spare": memory.peak(small, "spare"),
    }
    say("cold …")
    runs = [cold(small) for _ in range(3 if quick else 7)]
    results["cold"] = {name: statistics.median([r[name] for r in runs]) for name in runs[0]}
    results["cold"]["import isoload, first load"] = statistics.median(
        [run["import isoload"] + run["first load"] for run in runs]
    )
    return results


def host(rounds: int) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "rounds": rounds,
    }


def write(results: dict[str, Any]) -> None:
    """docs/benchmarks.json, .md and .png."""
    tables = (bars_table, times_table, touched_table, other_table)
    head = "Written by `make bench`. Milliseconds ± half the quartile distance (of torch.load)."
    text = "\n\n".join([head, *(table(results) for table in tables)])
    print(text)
    (DOCS / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "benchmarks.md").write_text(f"# Benchmarks\n\n{text}\n\n![ratios](benchmarks.png)\n")
    plot(results, str(DOCS / "benchmarks.png"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
