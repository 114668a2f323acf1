"""What the watchdog promises where there is no memory cgroup, and what it must not do."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from sandbox.isolation import State
from sandbox.layers import watchdog
from sandbox.layers.watchdog import Watchdog

MIB = 1 << 20
LIMIT = 192 * MIB


def watched(body: Callable[[], object], limit: int = LIMIT) -> tuple[int, Watchdog]:
    """Fork a process that runs ``body`` under a watchdog that kills; returns its exit code."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(reading, 1)
            body()
        finally:
            os._exit(0)
    with Watchdog(pid, limit, lambda measured: os.kill(pid, signal.SIGKILL)) as dog:
        os.write(writing, b"x")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(reading)
    os.close(writing)
    return status, dog


def fill_heap() -> None:
    kept = []
    for _ in range(2000):
        kept.append(bytearray(b"x") * MIB)
        time.sleep(0.0005)


def fill_heap_in_children() -> None:
    for _ in range(4):
        if os.fork() == 0:
            kept = []
            for _ in range(100):
                kept.append(bytearray(b"x") * MIB)
                time.sleep(0.002)
            time.sleep(10)
    time.sleep(10)


def fill_shared_mapping() -> None:
    memory = mmap.mmap(-1, 2000 * MIB)
    for start in range(0, 2000 * MIB, MIB):
        memory[start : start + MIB] = b"x" * MIB
        time.sleep(0.0005)


def fill_unmapped_memfd() -> None:
    fd = os.memfd_create("x")
    for _ in range(2000):
        os.write(fd, b"x" * MIB)


@pytest.mark.parametrize(
    "fill", [fill_heap, fill_heap_in_children, fill_shared_mapping, fill_unmapped_memfd]
)
def test_more_memory_than_allowed_is_death(fill):
    status, dog = watched(fill)
    assert status == -signal.SIGKILL
    assert dog.exceeded


def test_less_memory_than_allowed_is_life():
    def body() -> None:
        kept = bytearray(b"x") * (64 * MIB)
        time.sleep(0.2)
        del kept

    status, dog = watched(body)
    assert status == 0
    assert not dog.exceeded
    assert 60 * MIB <= dog.peak < LIMIT
    assert dog.cpu < 5


def test_what_it_was_forked_with_is_not_held_against_it():
    ballast = bytearray(b"x") * (2 * LIMIT)
    status, dog = watched(lambda: time.sleep(0.2))
    assert status == 0
    assert not dog.exceeded
    assert ballast[0] == ord("x")


def test_what_others_put_into_shared_memory_does_not_end_an_idle_worker():
    others = os.memfd_create("others")

    def fill() -> None:
        for _ in range(2 * LIMIT // MIB):
            os.write(others, b"x" * MIB)

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    with Watchdog(pid, LIMIT, lambda measured: os.kill(pid, signal.SIGKILL)) as dog:
        fill()
        time.sleep(0.1)
    assert not dog.exceeded
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for fd in (others, reading, writing):
        os.close(fd)


def test_a_host_that_runs_out_of_memory_ends_the_worker_that_grew(monkeypatch):
    host = SimpleNamespace(total=8 << 30, available=100 * MIB, shared=0)
    monkeypatch.setattr(watchdog.psutil, "virtual_memory", lambda: host)
    monkeypatch.setattr(watchdog, "_FLOOR", 128 * MIB)

    def body() -> None:
        kept = bytearray(b"x") * (160 * MIB)
        time.sleep(5)
        del kept

    status, dog = watched(body)
    assert status == -signal.SIGKILL
    assert dog.exceeded


def test_the_callback_comes_once_and_the_thread_ends():
    calls: list[int] = []
    pid = os.fork()
    if pid == 0:
        kept = bytearray(b"x") * (64 * MIB)
        time.sleep(60)
        del kept
        os._exit(0)
    with Watchdog(pid, MIB, calls.append) as dog:
        time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(calls) == 1
    assert calls[0] > MIB
    assert not dog._thread.is_alive()


def test_a_worker_that_cannot_be_watched_is_ended():
    calls: list[int] = []
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with Watchdog(pid, LIMIT, calls.append) as dog:
        pass
    assert calls == [0]
    assert not dog.exceeded


def test_it_is_no_layer_where_processes_are_hidden(monkeypatch):
    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(watchdog.psutil, "Process", hidden)
    layer = watchdog.layer("no cgroup here", "get one")
    assert layer.state is State.UNAVAILABLE
    assert "hidepid" in layer.cause
    assert not layer.satisfies()


def test_a_process_that_reuses_the_pid_is_not_killed(monkeypatch):
    """The kernel may give the pid of a reaped worker to anybody."""
    calls: list[int] = []
    dog = Watchdog(os.getpid(), LIMIT, calls.append)
    with dog:
        monkeypatch.setattr(dog._worker, "is_running", lambda: False)
        monkeypatch.setattr(dog, "limit", -1)
        time.sleep(0.1)
    assert calls == []


def test_it_costs_little():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    with Watchdog(pid, 1 << 40, lambda measured: None):
        before = time.process_time()
        time.sleep(1)
        spent = time.process_time() - before
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert spent < 0.6  # a tenth on real hardware


def test_the_layer_says_that_it_is_the_weaker_form():
    layer = watchdog.layer("no cgroup here", "get one")
    assert layer.state is State.PARTIAL
    assert "watchdog" in layer.mechanism
    assert (layer.cause, layer.remedy) == ("no cgroup here", "get one")
    assert layer.satisfies()


def test_the_hard_bound_counts_every_place_to_hide_memory():
    bound = watchdog.hard_bound(address_space=100, file_size=10, open_files=3, processes=2)
    assert bound == 2 * (100 + 10 * 3) + 10 * 3
