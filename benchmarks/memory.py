"""Peak memory of a load: of the caller, its zygote and its worker together, by a memory cgroup; of
the caller alone, by its resident set; of the worker alone, as its report says (its own cgroup).

The load runs in a new process in a new cgroup below this process's own, so that no other program's
memory is counted and nothing outside is touched. Run as a program: `python -m benchmarks.memory`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import isoload

from .files import File

_V1 = ("memory.usage_in_bytes", "memory.max_usage_in_bytes")
_V2 = ("memory.current", "memory.peak")


def _own_group() -> tuple[Path, tuple[str, str]] | None:
    """(this process's memory cgroup, the names of its usage and peak), or None."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory" + path), _V1
    group = Path("/sys/fs/cgroup" + path)
    return (group, _V2) if (group / "memory.peak").exists() else None


def peak(file: File, mode: str) -> dict[str, int] | None:
    """Bytes over those before the load: at the peak, and held with the result; at the peak of the
    caller alone; all that the worker had at its peak. None where no cgroup can be made.
    `mode`: "torch", "isoload", "isoload mmap", or "spare": what one costs."""
    own = _own_group()
    if own is None:
        return None
    group = own[0] / f"isoload-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    command = [sys.executable, "-m", "benchmarks.memory", str(group), *own[1], mode, str(file.path)]
    try:
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result: dict[str, int] = json.loads(out)
        return result
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    for _ in range(100):
        with suppress(OSError):
            for inner in group.glob("*/"):
                inner.rmdir()
            group.rmdir()
            return
        time.sleep(0.05)


def main(group: str, usage_name: str, peak_name: str, mode: str, path: str) -> None:
    folder = Path(group)
    (folder / "cgroup.procs").write_text(str(os.getpid()))
    usage, highest = folder / usage_name, folder / peak_name
    if mode == "spare":
        with isoload.Loader(spares=0, _ahead=False) as without:
            without.load(path)
            time.sleep(0.5)
            before = int(usage.read_text())
        with isoload.Loader(spares=1, _ahead=False) as loader:
            loader.load(path)
            time.sleep(1)
            after = int(usage.read_text())
        print(json.dumps({"spare": after - before}))
        return
    with isoload.Loader(spares=0, _ahead=False) as loader:
        if mode != "torch":
            loader.load(_small(path))
        torch.zeros(1)
        before = int(usage.read_text())
        with suppress(OSError):
            highest.write_text("0")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        resident = _status("VmRSS")
        worker = 0
        if mode == "torch":
            loaded = torch.load(path)
        else:
            opened = loader.open(path, mmap=mode == "isoload mmap")
            loaded = opened.object
            worker = opened.report.usage.memory if opened.report.usage is not None else 0
        result = {
            "peak": int(highest.read_text()) - before,
            "held": int(usage.read_text()) - before,
            "caller": _status("VmHWM") - resident,
            "worker": worker,
        }
        print(json.dumps(result))
        del loaded


def _status(field: str) -> int:
    """Bytes, of proc_pid_status(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise LookupError(field)


def _small(path: str) -> str:
    """The smallest checkpoint of the folder: what wakes the zygote up."""
    return str(min(Path(path).parent.glob("*.pt"), key=lambda file: file.stat().st_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
