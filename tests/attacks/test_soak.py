"""Many loads, honest, hostile and killed, leave nothing; and a host that has no more of it."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import isoload
from sandbox import Limits, Sandbox, SandboxError
from tests.attacks import outside, soak
from tests.attacks.conftest import ENTRIES, taken_over_loader

pytestmark = pytest.mark.isolation

ROOT = Path(__file__).resolve().parents[2]
COUNT, THREADS = 500, 8
ECHO = f"{ENTRIES}.resources:echo"
HOLD = f"{ENTRIES}.resources:hold"


@pytest.fixture
def fresh():
    """A sandbox of its own, whose processes a test may kill."""
    with Sandbox(preload=[f"{ENTRIES}.resources", f"{ENTRIES}.processes"], spares=1) as box:
        yield box


def test_five_hundred_loads_leave_nothing_behind(box):
    """Line 36: half of them hostile, some killed at random; all ended in time."""
    soak.soak(64, THREADS)
    before, memory, maps = outside.settled(), soak.resident(), soak.mappings()
    outcome = soak.soak(COUNT, THREADS, seed=7)
    assert sum(outcome.ends.values()) == COUNT
    assert outcome.ends["honest"] > COUNT / 4
    changed = outside.changes(before)
    assert not changed
    assert soak.resident() - memory < soak.GROWTH
    assert soak.mappings() - maps < 64


def below(box):
    """Its sentinel, workers and spares."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(box._zygote.pid).children(recursive=True)
    return []


def test_a_dead_zygote_is_replaced_and_the_log_says_so(fresh, caplog):
    """Line 36: killed while nobody waits, and while a run is under way."""
    assert fresh.run(ECHO, b"a").data == b"a"
    for _ in range(3):
        os.kill(fresh._zygote.pid, signal.SIGKILL)
        with caplog.at_level(logging.WARNING):
            assert fresh.run(ECHO, b"b").data == b"b"
    assert "zygote" in caplog.text


@pytest.mark.parametrize("moment", [0.0, 0.003, 0.01, 0.03, 0.1])
def test_a_run_survives_whoever_is_killed_or_raises_a_sandbox_error(fresh, moment):
    """Line 36: sentinel, workers and spares, at each stage of a run."""
    fresh.run(ECHO, b"")
    for _ in range(4):
        timer = threading.Timer(moment, lambda: [_kill(process) for process in below(fresh)])
        timer.start()
        started = time.monotonic()
        with contextlib.suppress(SandboxError):
            assert fresh.run(ECHO, b"x", (), Limits(wall=20)).data == b"x"
        assert time.monotonic() - started < 20 + outside.PATIENCE
        timer.join()
    assert outside.wait_until(lambda: well(fresh))


def well(box):
    """Does a run succeed? A spare that was killed a moment ago may still be handed out."""
    with contextlib.suppress(SandboxError):
        return box.run(ECHO, b"well").data == b"well"


def _kill(process):
    with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
        process.kill()


def test_a_worker_does_not_outlive_zygote_and_sandbox(fresh):
    """Line 23: the zygote is killed, then the sandbox closed: nothing is left below."""
    with outside.held(fresh) as worker:
        processes = [psutil.Process(fresh._zygote.pid), *below(fresh)]
        fresh._zygote._process.kill()
        fresh.close()
        assert worker in processes
        assert outside.wait_until(lambda: not any(map(outside.lives, processes)))


def test_a_worker_does_not_outlive_the_sentinel_or_the_parent(fresh):
    """Line 23: the zygote does not go on without its second guard."""
    with outside.held(fresh) as worker:
        zygote = psutil.Process(fresh._zygote.pid)
        sentinel = min(zygote.children(), key=psutil.Process.create_time)
        assert sentinel != worker
        sentinel.kill()
        assert outside.wait_until(lambda: not outside.lives(worker))
    assert outside.wait_until(lambda: well(fresh))


def test_without_descriptors_a_run_fails_and_the_next_is_well(fresh):
    """Line 36: EMFILE in the parent, with none to a few left."""
    fresh.run(ECHO, b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in (0, 2, 5, 9, 14):
        opened = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 1 + spare, hard))
        try:
            with contextlib.suppress(SandboxError, OSError):
                fresh.run(ECHO, b"x", (), Limits(wall=10))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert fresh.run(ECHO, b"well").data == b"well"


@pytest.mark.skipif(os.geteuid() == 0, reason="RLIMIT_NPROC does not hold root")
def test_a_refused_fork_is_an_error_and_the_next_is_well(fresh):
    """Line 36: EAGAIN in the zygote, which goes on."""
    fresh.run(ECHO, b"")
    zygote = fresh._zygote.pid
    limits = resource.prlimit(zygote, resource.RLIMIT_NPROC)
    resource.prlimit(zygote, resource.RLIMIT_NPROC, (1, limits[1]))
    try:
        with pytest.raises(SandboxError, match="refused to fork"):
            [fresh.run(ECHO, b"") for _ in range(3)]  # the spare, which is there, first
    finally:
        resource.prlimit(zygote, resource.RLIMIT_NPROC, limits)
    assert fresh.run(ECHO, b"well").data == b"well"
    assert fresh._zygote.pid == zygote


def test_a_spare_whose_group_vanished_is_replaced(fresh):
    """Line 36: somebody has killed the spare and removed its control group."""
    before = set(outside.cgroups())
    fresh.run(ECHO, b"")
    outside.wait_until(lambda: fresh._idle)
    for process in below(fresh):
        _kill(process)
    for group in set(outside.cgroups()) - before:
        outside.wait_until(lambda group=group: _removed(group))
    assert outside.wait_until(lambda: well(fresh))


def _removed(group):
    with contextlib.suppress(OSError):
        os.rmdir(group)
    return not os.path.exists(group)


def test_a_clock_that_jumps_changes_no_deadline(fresh, monkeypatch):
    """Line 26: the wall clock goes back and forth; deadlines are by the monotonic one."""
    for jump in (-1e9, 1e9, 0.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        assert fresh.run(ECHO, b"x", (), Limits(wall=30)).data == b"x"
        with pytest.raises(SandboxError):
            fresh.run(HOLD, b"", (), Limits(wall=0.3))


FAULTS = {
    "memory": "resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), size + (1 << 20)))",
    "file size": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))",
    "processes": "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_that_has_no_more_ends_a_load_with_an_error(fault):
    """Line 36: ENOMEM, EFBIG and EAGAIN in the parent: an error, never a hang or a crash."""
    code = f"""
import io, os, resource, sys, torch, isoload
buffer = io.BytesIO()
torch.save({{"weight": torch.ones(1 << 20)}}, buffer)
with isoload.Loader(spares=0) as loader:
    loader.load(buffer.getvalue(), "cpu")
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    {FAULTS[fault]}
    for _ in range(3):
        try:
            loader.load(buffer.getvalue(), "cpu")
        except (isoload.IsoloadError, OSError, MemoryError, RuntimeError) as error:
            assert not isinstance(error, isoload.InternalError), error
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_many_threads_of_one_loader_close_it_meanwhile():
    """Line 29: close() during loads of eight threads: each ends, with a result or an error."""
    loader = taken_over_loader(spares=1)
    ends = []

    def work():
        for _ in range(20):
            try:
                loader.load(soak.GOOD, "cpu")
                ends.append("well")
            except (isoload.IsoloadError, RuntimeError, ValueError) as error:
                ends.append(type(error).__name__)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 15
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(ends) == 20 * THREADS
