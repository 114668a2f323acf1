"""What lies outside the worker and must be as it was: the parent's own state, and its canaries."""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from sandbox import Limits, Sandbox, SandboxError

PATIENCE = 10.0
"""Seconds that something may take on a loaded machine before it counts as never."""


HOLD = "tests.attacks.entries.resources:hold"
_NOT_THE_LOADS = frozenset({"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"})
"""What pytest sets, and torch itself when its nested tensors are imported."""


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The condition's value as soon as it is true, or what it is when the time is over."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > until:
            return value
        time.sleep(0.01)


def descriptors() -> collections.Counter[str]:
    """What this process has open, by kind and name."""
    found: collections.Counter[str] = collections.Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{fd}")
            kind = re.sub(r"isoload-\d+-\d+-\w+", "a worker's group", name.partition(":[")[0])
            found[kind] += not name.startswith("/proc/")
    return +found


def descendants() -> list[psutil.Process]:
    """Every process below this one that is not gone."""
    return psutil.Process().children(recursive=True)


def cgroups(pid: int | None = None) -> list[str]:
    """The control groups that belong to workers of this process, or of another."""
    mine = f"-{pid or os.getpid()}-"
    found = []
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found += [
            f"{folder}/{name}" for name in names if name.startswith("isoload-") and mine in name
        ]
        if folder.count("/") > 9:
            names.clear()
    return found


def state() -> dict[str, Any]:
    """All that a load may not change, once it is over."""
    return {
        "descriptors": descriptors(),
        "processes": len(descendants()),
        "threads": threading.active_count(),
        "cgroups": len(cgroups()),
        "environment": {k: v for k, v in os.environ.items() if k not in _NOT_THE_LOADS},
        "folder": os.getcwd(),
        "ids": (os.getresuid(), os.getresgid(), os.umask(os.umask(0o22))),
        "signals": [str(signal.getsignal(number)) for number in range(1, 32)],
        "timeout": socket.getdefaulttimeout(),
        "recursion": sys.getrecursionlimit(),
        "hooks": (str(sys.excepthook), str(sys.meta_path), len(sys.path)),
        "shared memory": [name for name in os.listdir("/dev/shm") if "isoload" in name],
    }


def warm(sandboxed: Any) -> None:
    """Have a Sandbox or a Loader start all that it starts but once."""
    boxes = getattr(sandboxed, "_boxes", None)
    for box in [sandboxed] if boxes is None else [boxes.light, boxes.torch]:
        with contextlib.suppress(SandboxError):
            box.run("sandbox.throwaway:answer", b"", ())


def settled() -> dict[str, Any]:
    """The state, once what ended before has been cleared away: the same for a while."""
    gc.collect()
    now = state()
    until, stable = time.monotonic() + PATIENCE, time.monotonic() + 0.25
    while time.monotonic() < min(until, stable):
        time.sleep(0.02)
        before, now = now, state()
        if now != before:
            stable = time.monotonic() + 0.25
    return now


def changes(before: dict[str, Any], seconds: float = PATIENCE) -> dict[str, Any]:
    """What is not as it was before, once everything that ends has ended."""

    gc.collect()

    def compare() -> dict[str, Any]:
        now = state()
        return {key: _difference(before[key], now[key]) for key in now if before[key] != now[key]}

    wait_until(lambda: not compare(), seconds)
    return compare()


def _difference(before: Any, now: Any) -> Any:
    if isinstance(before, collections.Counter):
        return {"gone": before - now, "new": now - before}
    if isinstance(before, dict):
        keys = before.keys() | now.keys()
        return {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}
    return before, now


@contextlib.contextmanager
def unharmed(seconds: float = PATIENCE) -> Iterator[None]:
    """What happens inside changes nothing outside the worker."""
    before = settled()
    yield
    changed = changes(before, seconds)
    assert not changed, f"changed outside the worker: {changed}"


@contextlib.contextmanager
def canary_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user, group and session as this one: a stray signal would end it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
            time.sleep(0.05)
            assert process.poll() is None, "the canary process was killed"
        finally:
            process.kill()


class Signals:
    """Counts the signals that reach this process while it is watched."""

    NUMBERS = (signal.SIGUSR1, signal.SIGURG, signal.SIGHUP, signal.SIGTERM, signal.SIGIO)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __enter__(self) -> Signals:
        self._before = {
            number: signal.signal(number, lambda number, _: self.seen.append(number))
            for number in self.NUMBERS
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def shared_memory() -> int:
    """Bytes of shared memory on this host: memory files and tmpfs count there."""
    return int(psutil.virtual_memory().shared)


def new_descendants(known: set[int]) -> list[psutil.Process]:
    return [process for process in descendants() if process.pid not in known]


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status as a table."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def held(box: Sandbox, errors: list[SandboxError] | None = None) -> Iterator[psutil.Process]:
    """A worker in the middle of its entry, to be looked at from outside; it ends with the block."""
    here, there = socket.socketpair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    here.settimeout(PATIENCE)

    def work() -> None:
        try:
            box.run(HOLD, b"", [there.fileno()], Limits(wall=60))
        except SandboxError as error:
            if errors is not None:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        # The kernel tells who sent it, by the pid that counts here. unix(7), SCM_CREDENTIALS
        _, ((_, _, credentials),), _, _ = here.recvmsg(1, socket.CMSG_SPACE(12))
        worker = psutil.Process(struct.unpack("3i", credentials)[0])
        try:
            yield worker
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
    finally:
        thread.join(PATIENCE)
        here.close()
        there.close()
    assert not thread.is_alive(), "the run did not end with its worker"


def lives(process: psutil.Process) -> bool:
    """Is it neither gone nor a zombie?"""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
