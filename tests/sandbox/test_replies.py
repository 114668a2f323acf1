"""A reply is bytes and descriptors within bounds; whatever else a worker sends is refused."""

from __future__ import annotations

import os
import pickle

import pytest

from sandbox import LimitError, Limits, Sandbox, WorkerError, check_segment, map_segment
from tests.sandbox.conftest import Run, Traces

pytestmark = pytest.mark.isolation


def test_bytes_of_any_size_come_back(run: Run) -> None:
    for size in (0, 1, 300_000, 20_000_000):
        request = os.urandom(size)
        assert run("echo", request).data == request


def test_a_sealed_segment_comes_back_and_can_be_mapped(run: Run) -> None:
    reply = run("segment", b"tensors" * 1000)
    (fd,) = reply.fds
    try:
        size = check_segment(fd, 1 << 20)
        assert map_segment(fd, size)[:] == b"tensors" * 1000
    finally:
        os.close(fd)


def test_what_the_entry_raises_becomes_printable_words(run: Run) -> None:
    with pytest.raises(WorkerError) as caught:
        run("raise_named", b"ValueError")
    assert caught.value.detail == r"ValueError: \x1b]52;c;evil\x07 \u202e a\nb"
    for name in ("SystemExit", "KeyboardInterrupt"):
        with pytest.raises(WorkerError, match=name):
            run("raise_named", name.encode())
    with pytest.raises(LimitError) as limit:
        run("raise_named", b"MemoryError")
    assert limit.value.limit == "memory"


def test_words_of_any_length_are_cut(run: Run) -> None:
    with pytest.raises(WorkerError) as caught:
        run("raise_named", b"long")
    assert len(str(caught.value)) < 3000


def test_errors_survive_pickling_in_the_callers_own_pools(run: Run) -> None:
    for error in (WorkerError("words", 9), LimitError("memory", 5, "words")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))


def test_an_answer_of_the_wrong_kind_is_an_error(run: Run) -> None:
    with pytest.raises(WorkerError, match="Error"):
        run("wrong_answer")
    with pytest.raises(WorkerError):
        run("return_bad_fds")


def test_only_the_first_reply_counts(run: Run) -> None:
    assert run("two_replies").data == b"first"


@pytest.mark.parametrize("kind", [0, 1, 2, 6, 255])
def test_a_frame_of_an_unknown_kind_is_refused(run: Run, kind: int) -> None:
    with pytest.raises(WorkerError, match="protocol"):
        run("raw_frame", f"[0, {kind}]".encode())


@pytest.mark.parametrize("each", [1, 16, 17, 253])
def test_surplus_descriptors_are_closed(run: Run, each: int) -> None:
    run("echo")
    before = Traces()
    with pytest.raises((WorkerError, LimitError)):
        run("flood_fds", str(each).encode(), limits=Limits(wall=3))
    Traces.wait_until(before)


def test_a_worker_that_closes_its_channel_is_ended_at_once(run: Run) -> None:
    with pytest.raises(WorkerError, match="closed its channel"):
        run("close_channel")


def test_an_entry_that_is_not_there_is_an_error(run: Run) -> None:
    with pytest.raises(WorkerError, match="cannot be called"):
        run("not_there")


@pytest.mark.parametrize("entry", ["", "module", "module:", ":name", "a b:c", "os:system; x"])
def test_an_entry_that_names_nothing_is_refused_before_anything_starts(entry: str) -> None:
    with Sandbox() as box, pytest.raises(ValueError, match="entry"):
        box.run(entry, b"")
