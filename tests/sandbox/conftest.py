"""Sandboxes for the tests, and the counting of what a run must not leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox import IsolationError, Reply, Sandbox
from sandbox.layers import cgroup_find, cgroup_leaf

ENTRIES = "tests.sandbox.entries"

Run = Callable[..., Reply]


@pytest.fixture(scope="session")
def box() -> Iterator[Sandbox]:
    with Sandbox(preload=[ENTRIES]) as box:
        yield box


@pytest.fixture(scope="session")
def isolated(box: Sandbox) -> Sandbox:
    """A sandbox whose workers have every required layer."""
    missing = box.isolation().missing()
    if missing:
        pytest.skip(str(IsolationError(missing)))
    return box


@pytest.fixture(scope="session")
def run(isolated: Sandbox) -> Run:
    """run("entry_name", request, …) in a worker with every required layer."""

    def run(name: str, *args: object, **named: object) -> Reply:
        request, *rest = args or (b"",)
        return isolated.run(f"{ENTRIES}:{name}", request, *rest, **named)  # type: ignore[arg-type]

    return run


def wait_for(found: Callable[[], Any]) -> Any:
    """What is found within ten seconds."""
    deadline = time.monotonic() + 10
    while not found() and time.monotonic() < deadline:
        time.sleep(0.01)
    return found()


class Traces:
    """This process's descriptors, threads, mappings, its processes and its groups."""

    def __init__(self) -> None:
        me = psutil.Process()
        self.counts = {
            "descriptors": me.num_fds(),
            "threads": me.num_threads(),
            "mappings": len(me.memory_maps(grouped=False)) if os.geteuid() == 0 else 0,
            "processes": len(me.children(recursive=True)),
            "groups": _groups(),
            "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
            "shm": len(os.listdir("/dev/shm")),
        }

    @staticmethod
    def wait_until(before: Traces, slack: int = 3, seconds: float = 10.0) -> None:
        """Until everything is as it was; the burial of a worker takes a moment.

        `slack`: mappings that the allocator may have made meanwhile. Hundreds of runs would show
        a leak of one a run all the same.
        """
        deadline = time.monotonic() + seconds
        while True:
            now = Traces()
            more = {
                name: (count, before.counts[name])
                for name, count in now.counts.items()
                if count > before.counts[name] + (slack if name == "mappings" else 0)
            }
            if not more:
                return
            assert time.monotonic() < deadline, f"left behind (now, before): {more}"
            time.sleep(0.05)


def _groups() -> int:
    """The cgroups that this process has made and not removed."""
    prefix = f"{cgroup_leaf.PREFIX}{cgroup_leaf.caller_id()}-"
    found = 0
    try:
        places = cgroup_find.places()
    except cgroup_find.CgroupUnavailable:
        return 0
    for path in {place.path for place in places}:
        for folder, names, _ in os.walk(path):
            found += sum(name.startswith(prefix) for name in names)
            if folder != path:
                names.clear()
    return found


@pytest.fixture
def traces() -> Callable[[], Traces]:
    return Traces
