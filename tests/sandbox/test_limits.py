"""Whatever a worker takes or does, its limit ends it, in time, and the parent goes on."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from sandbox import LimitError, Limits, Sandbox, WorkerError
from tests.sandbox.conftest import Run

pytestmark = pytest.mark.isolation

MIB = 1 << 20


@pytest.mark.parametrize("name", ["spin", "stop_itself", "fork_bomb", "trickle"])
def test_what_never_answers_ends_at_the_deadline(run: Run, name: str) -> None:
    start = time.monotonic()
    with pytest.raises(LimitError) as caught:
        run(name, limits=Limits(wall=0.7, cpu=60))
    assert caught.value.limit in ("wall", "cpu")
    assert 0.6 < time.monotonic() - start < 3
    assert run("echo", b"on we go").data == b"on we go"


@pytest.mark.parametrize("name", ["take_heap", "take_memfds"])
def test_memory_over_the_limit_ends_the_worker(run: Run, name: str) -> None:
    with pytest.raises(LimitError) as caught:
        run(name, limits=Limits(memory=128 * MIB, wall=20, output=32 * MIB))
    assert caught.value.limit == "memory"
    assert caught.value.allowed == 128 * MIB
    assert run("echo", b"on we go").data == b"on we go"


def test_cpu_time_over_the_limit_ends_the_worker(run: Run) -> None:
    with pytest.raises(LimitError) as caught:
        run("spin", limits=Limits(cpu=1, wall=20))
    assert caught.value.limit == "cpu"


def test_cpu_time_of_children_counts_where_a_cgroup_tells(isolated: Sandbox, run: Run) -> None:
    if not isolated.isolation()["cgroup"].mechanism:
        pytest.skip("no cgroup here")
    with pytest.raises(LimitError) as caught:
        run("spin_in_children", limits=Limits(cpu=1, wall=20))
    assert caught.value.limit == "cpu"


def test_a_reply_over_the_limit_is_refused_unread(run: Run) -> None:
    with pytest.raises(LimitError) as caught:
        run("echo", b"x" * 100_000, limits=Limits(output=99_999))
    assert caught.value.limit == "output"


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 1 << 40])
def test_a_claimed_length_costs_nothing(run: Run, length: int) -> None:
    start = time.monotonic()
    with pytest.raises(LimitError) as caught:
        run("raw_frame", f"[{length}, 3]".encode())
    assert caught.value.limit == "output"
    assert time.monotonic() - start < 2


def test_a_claimed_length_below_the_limit_is_not_stored_in_advance(run: Run) -> None:
    with pytest.raises(LimitError) as caught:
        run("raw_frame", b"[60000000, 3]", limits=Limits(wall=0.5))
    assert caught.value.limit == "wall"


@pytest.mark.parametrize(("padding", "limit"), [(0, "output"), (20_000_000, "wall")])
def test_how_long_a_reply_may_be_follows_the_input(run: Run, padding: int, limit: str) -> None:
    """64 MiB and eight times the input: this process would hold it."""
    with pytest.raises(LimitError) as caught:
        run("raw_frame", b"[200000000, 3]" + b" " * padding, limits=Limits(wall=1))
    assert caught.value.limit == limit


def test_a_waiting_call_counts_against_its_own_wall_time() -> None:
    with Sandbox(preload=["tests.sandbox.entries"], max_workers=1) as box:
        first = threading.Thread(
            target=lambda: box.run("tests.sandbox.entries:nap", b"1.2", require=())
        )
        box.isolation()
        first.start()
        time.sleep(0.3)
        with pytest.raises(LimitError) as caught:
            box.run("tests.sandbox.entries:echo", b"", limits=Limits(wall=0.3), require=())
        assert caught.value.limit == "wall"
        first.join()


def test_a_worker_that_dies_says_by_what(run: Run) -> None:
    with pytest.raises(WorkerError) as caught:
        run("die", b"segv")
    assert caught.value.signal == signal.SIGSEGV
    with pytest.raises(WorkerError) as caught:
        run("die", b"abort")
    assert caught.value.signal in (signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGTRAP)
    with pytest.raises(WorkerError) as caught:
        run("die", b"quietly")
    assert caught.value.signal is None


def test_usage_is_measured_from_outside(run: Run) -> None:
    usage = run("nap", b"0.2").usage
    assert 0.2 <= usage.wall < 5
    assert 0 <= usage.cpu < 2


def test_limits_follow_the_input_and_the_host() -> None:
    small, large = Limits().resolved(0), Limits().resolved(1 << 40)
    assert small.wall < large.wall
    assert small.output < large.output
    assert small.memory == 1 << 30 < large.memory < 1 << 40
    assert Limits(memory=5).resolved(1 << 30).memory == 5


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_limit_that_limits_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"Limits\.wall"):
        Limits(wall=value)
    with pytest.raises(TypeError):
        Limits(memory="1 GB")  # type: ignore[arg-type]
