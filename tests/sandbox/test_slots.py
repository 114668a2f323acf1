"""One count of workers for sandboxes beside each other, and one slot of it for each reservation,
however many runs that serves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from sandbox import ClosedError, IsolationError, LimitError, Limits, Sandbox, WorkerError
from tests.sandbox.conftest import ENTRIES, Traces, wait_for

pytestmark = pytest.mark.isolation

ECHO = f"{ENTRIES}:echo"
SOON = Limits(wall=3)  # a run that waits for a slot which nobody gives back says so before long

Pair = tuple[Sandbox, Sandbox]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two sandboxes beside each other, with one slot between them."""
    with (
        Sandbox(preload=[ENTRIES], max_workers=1) as first,
        Sandbox(preload=[ENTRIES], beside=first) as second,
    ):
        first.isolation()
        second.isolation()
        yield first, second


def is_free(box: Sandbox) -> bool:
    give_back = box._slots.take(0)
    if give_back is not None:
        give_back()
    return give_back is not None


def test_the_time_of_all_runs_in_a_reservation_is_limited(pair: Pair) -> None:
    limits, nap = Limits(wall=2), f"{ENTRIES}:nap"
    with pair[0].reserve() as place:
        pair[0].run(nap, b"1.2", limits=limits, reserved=place)
        with pytest.raises(LimitError) as raised:
            pair[1].run(nap, b"1.2", limits=limits, reserved=place)
        assert (raised.value.limit, raised.value.allowed) == ("wall", 2)
        with pytest.raises(LimitError):
            pair[0].run(ECHO, b"", limits=limits, reserved=place)
    assert pair[0].run(nap, b"0.1", limits=limits).data is not None


def test_two_runs_in_one_reservation_take_one_slot() -> None:
    with Sandbox(preload=[ENTRIES], max_workers=1) as box:
        for begin in (False, True):
            with box.reserve(begin=begin) as place:
                assert box.run(ECHO, b"one", limits=SOON, reserved=place).data == b"one"
                assert box.run(ECHO, b"two", limits=SOON, reserved=place).data == b"two"
            assert wait_for(lambda: is_free(box))


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("turn", [1, -1])
def test_a_reservation_serves_a_run_of_each_sandbox(pair: Pair, begin: bool, turn: int) -> None:
    first, second = pair[::turn]
    with first.reserve(begin=begin) as place:
        for number, box in enumerate((first, second, first)):
            data = str(number).encode()
            assert box.run(ECHO, data, limits=SOON, reserved=place).data == data


def test_sandboxes_beside_each_other_count_their_workers_together(pair: Pair) -> None:
    first, second = pair
    with Sandbox(beside=second) as third, first.reserve() as place:
        first.run(ECHO, b"", reserved=place)
        for box in (second, third):
            with box.reserve() as other:
                assert other.begun is None
            with pytest.raises(LimitError, match="no worker became free"):
                box.run(ECHO, b"", limits=Limits(wall=0.2))
    assert second.run(ECHO, b"after", limits=SOON).data == b"after"


def test_only_who_shares_the_slots_may_use_a_reservation_and_only_in_its_block(
    pair: Pair, box: Sandbox
) -> None:
    with pair[0].reserve() as place:
        with pytest.raises(ValueError, match="shares no slots"):
            box.run(ECHO, b"", reserved=place)
        assert pair[1].run(ECHO, b"x", reserved=place).data == b"x"
    for used in pair:
        with pytest.raises(ValueError, match="has ended"):
            used.run(ECHO, b"", reserved=place)
    with pytest.raises(ValueError, match="only one of the two"):
        Sandbox(beside=box, max_workers=1)


@pytest.mark.parametrize("turn", [1, -1])
def test_the_slot_is_free_once_the_last_worker_is_buried(pair: Pair, turn: int) -> None:
    quick, slow = pair[::turn]
    resume = threading.Event()

    def work() -> None:
        resume.wait(30)

    slow._pool._housekeeper.do(work)
    with pair[0].reserve() as place:
        for box in pair:
            box.run(ECHO, b"", reserved=place)
    assert wait_for(lambda: not quick._pool._workers)
    assert not is_free(slow)
    resume.set()
    assert wait_for(lambda: is_free(slow))
    assert not slow._pool._workers


def test_its_workers_are_buried_at_its_end_and_no_two_of_them_live_at_one_time(pair: Pair) -> None:
    first, second = pair
    with first.reserve() as place:
        assert place.begun is not None  # and never used
        second.run(ECHO, b"", reserved=place)
        second.run(ECHO, b"", reserved=place)
        assert [pool for pool, _ in place.over] == [first._pool, second._pool, second._pool]
        for pool, worker in place.over:
            assert worker in pool._workers
            assert wait_for(worker.dead)
    assert wait_for(lambda: not first._pool._workers and not second._pool._workers)


def test_the_next_spare_is_made_in_each_sandbox_that_it_used() -> None:
    with (
        Sandbox(preload=[ENTRIES], max_workers=1, spares=1) as first,
        Sandbox(preload=[ENTRIES], beside=first, spares=1) as second,
        Sandbox(preload=[ENTRIES], beside=first, spares=1) as unused,
    ):
        with first.reserve() as place:
            for box in (first, second):
                box.run(ECHO, b"", reserved=place)
        assert wait_for(lambda: first._idle and second._idle)
        assert unused._zygote is None


@pytest.mark.parametrize(
    ("entry", "error"), [("die", WorkerError), ("spin", LimitError), ("no_such_entry", WorkerError)]
)
def test_a_run_that_failed_leaves_the_slot_to_the_next(
    pair: Pair, entry: str, error: type[Exception]
) -> None:
    with pair[0].reserve() as place:
        with pytest.raises(error):
            pair[0].run(f"{ENTRIES}:{entry}", b"", limits=Limits(wall=0.5), reserved=place)
        for box in pair:
            assert box.run(ECHO, b"x", limits=SOON, reserved=place).data == b"x"


def test_a_worker_without_a_required_layer_has_ended_when_the_next_one_serves() -> None:
    with (
        Sandbox(preload=[ENTRIES], max_workers=1, _disable={"landlock"}) as first,
        Sandbox(preload=[ENTRIES], beside=first) as second,
        first.reserve() as place,
    ):
        with pytest.raises(IsolationError):
            first.run(ECHO, b"", require={"landlock"}, reserved=place)
        assert second.run(ECHO, b"x", limits=SOON, reserved=place).data == b"x"
        assert wait_for(place.over[0][1].dead)


def test_it_may_use_a_sandbox_whose_zygote_dies_and_one_that_was_closed(pair: Pair) -> None:
    first, second = pair
    with first.reserve() as place:
        assert second._zygote is not None
        os.kill(second._zygote.pid, signal.SIGKILL)
        assert second.run(ECHO, b"x", limits=SOON, reserved=place).data == b"x"
        second.close()
        with pytest.raises(ClosedError):
            second.run(ECHO, b"", reserved=place)
        assert first.run(ECHO, b"y", limits=SOON, reserved=place).data == b"y"
    assert first.run(ECHO, b"z", limits=SOON).data == b"z"


def test_many_threads_may_use_both(pair: Pair) -> None:
    first, second = pair
    answers: list[bytes] = []

    def work(number: int) -> None:
        for turn in range(3):
            with first.reserve() as place:
                for box in (first, second):
                    answers.append(box.run(ECHO, b"%d.%d" % (number, turn), reserved=place).data)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(2 * [b"%d.%d" % (n, t) for n in range(6) for t in range(3)])


def test_they_leave_nothing(pair: Pair) -> None:
    first, second = pair

    def both() -> None:
        with first.reserve() as place:
            for box in (first, second):
                box.run(ECHO, b"", reserved=place)

    both()
    assert wait_for(lambda: is_free(first))
    before = Traces()
    for _ in range(20):
        both()
    Traces.wait_until(before)


def in_child(work: Callable[[], bytes]) -> bytes:
    """What `work` returns in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, work())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return data


def test_a_forked_child_has_slots_of_its_own_and_its_sandboxes_share_them(pair: Pair) -> None:
    first, second = pair

    def work() -> bytes:
        with second.reserve() as place:
            data = b"".join(box.run(ECHO, b"x", reserved=place).data for box in (first, second))
            data += b"shared" if not is_free(first) else b""
        for box in (first, second):
            box.close()
        return data

    with first.reserve() as place:
        first.run(ECHO, b"", reserved=place)
        assert in_child(work) == b"xxshared"
        assert second.run(ECHO, b"meanwhile", reserved=place).data == b"meanwhile"


def test_a_reservation_that_a_fork_inherited_gives_the_child_no_second_slot(pair: Pair) -> None:
    first, second = pair

    def work() -> bytes:
        place.end()
        with first.reserve(begin=False) as mine:
            assert mine.take_slot(0)
            return b"one" if not is_free(second) else b"two"

    with first.reserve() as place:
        second.run(ECHO, b"", reserved=place)
        assert in_child(work) == b"one"
    assert wait_for(lambda: is_free(first))
