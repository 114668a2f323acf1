"""D. A worker against the host: memory, processes, time, floods, and the end of its parent."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest
import torch

import isoload
from isoload import manifest as m
from isoload import wire
from sandbox import ClosedError, LimitError, Limits, Sandbox, SandboxError, WorkerError
from tests.attacks import outside
from tests.attacks.conftest import ENTRIES, MODULES, calling, loaded, replying

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("unharmed")]

SANDBOXES = ("box", "taken_over")
ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SLACK = 2 << 30
"""What forked processes count twice, and what others here may put into shared memory meanwhile."""


class Ended:
    """The error that ended a run, in time; its processes never held more than the limit."""

    def __init__(self, *kinds: type[Exception], wall: float = 30.0, memory: int = 0) -> None:
        self._kinds = kinds
        self._wall = wall
        self._memory = memory
        self._most = 0

    def __enter__(self) -> Ended:
        self._started = time.monotonic()
        self._shared = outside.shared_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            held = outside.shared_memory() - self._shared
            for process in outside.descendants():
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    held += memory.rss - memory.shared
            self._most = max(self._most, held)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object):
        self._stop.set()
        self._thread.join()
        assert kind is not None, "nothing ended it"
        if not issubclass(kind, self._kinds):
            return False
        self.error = error
        assert time.monotonic() - self._started < self._wall + outside.PATIENCE
        if self._memory:
            assert self._most < self._memory + SLACK
        return True


def test_segments_that_are_holes_cost_the_parent_nothing(taken_over):
    """Line 21: a sealed hole of 256 MiB, and one as large as the kernel lets it be."""
    storage = m.Storage(m.ARENA, 0, 4096, "cpu")
    reply = loaded(m.Tensor(0, 0, 0, [1024], [1]), storages=[storage])
    before = psutil.Process().memory_info().rss
    for kind in ("sparse", "endless"):
        with pytest.raises((isoload.WorkerError, isoload.LimitError)):
            taken_over.load(replying(reply, kind))
    assert psutil.Process().memory_info().rss - before < 32 * MIB


@pytest.mark.parametrize(
    "entry",
    ["heap", "anonymous", "memfds", "memfds_in_flight", "pipe_memory"],
)
def test_memory_is_bounded_by_whatever_road_it_is_taken(run, entry):
    """Line 22: heap, shared mappings, memory files open and in flight, pipes: 10 GiB and more."""
    limit = 256 * MIB
    with Ended(LimitError, WorkerError, wall=4, memory=limit) as ended:
        run(f"resources:{entry}", memory=limit, wall=4)
    assert getattr(ended.error, "limit", "memory") in ("memory", "wall", "cpu", "open_files")


def test_a_full_tmp_is_no_more_than_its_bound(attack):
    """Line 22: /tmp filled with files until it takes no more."""
    assert attack("resources:temporary_files", memory=512 * MIB) <= 64 * MIB


def test_a_file_over_the_limit_on_output_ends_the_worker(run):
    """Line 22: one file beyond RLIMIT_FSIZE."""
    with pytest.raises((LimitError, WorkerError)):
        run("resources:full_disk", output=8 * MIB)


def test_a_fork_bomb_is_bounded_and_ended(run):
    """Line 23: forks that fork, in their own sessions, ignoring every signal."""
    before = len(psutil.pids())
    most = 0

    def count():
        nonlocal most
        while not over.wait(0.05):
            most = max(most, len(psutil.pids()) - before)

    over = threading.Event()
    counter = threading.Thread(target=count)
    counter.start()
    try:
        with Ended(LimitError, WorkerError, wall=2):
            run("resources:fork_bomb", wall=2, processes=16)
    finally:
        over.set()
        counter.join()
    assert most < 16 + 100  # what else starts on this host meanwhile counts too


def test_threads_are_bounded(attack):
    """Line 23: threads count as processes do."""
    assert attack("resources:threads", processes=16) <= 16


def test_daemons_die_with_their_worker(run):
    """Line 23: double forks in sessions of their own, left behind by a worker that replied well."""
    known = {process.pid for process in outside.descendants()}
    assert run("resources:daemons", b"fine").data == b"fine"
    assert outside.wait_until(lambda: not outside.new_descendants(known))


@pytest.mark.parametrize("entry", ["resources:hold", "resources:fork_bomb", "resources:heap"])
def test_nothing_outlives_a_parent_that_is_killed(entry):
    """Line 23: SIGKILL to the parent in the middle of a run: all is gone within a second or so."""
    code = f"""
import os, sys, threading, time
from sandbox import Limits, Sandbox
box = Sandbox(preload=["tests.attacks.entries.resources"], spares=1)
box.isolation()
run = lambda: box.run("tests.attacks.entries.{entry}", b"", (), Limits(wall=60, processes=16))
for _ in range(2):
    threading.Thread(target=run, daemon=True).start()
time.sleep(0.5)
print("running", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"running\n"
        below = psutil.Process(child.pid).children(recursive=True)
        assert len(below) >= 4
        child.kill()
        child.wait()
    killed = time.monotonic()

    def gone():
        return not any(map(outside.lives, below)) and not outside.cgroups(child.pid)

    assert outside.wait_until(gone)
    if os.getloadavg()[0] < os.cpu_count():
        assert time.monotonic() - killed < 1.5


@pytest.mark.parametrize("count", [1, 253, 2530])
def test_a_flood_of_descriptors_is_closed(run, count):
    """Line 24: as many descriptors as messages can carry, before the reply."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SandboxError):
        run("wire:descriptors", str(count).encode(), wall=5)
    assert outside.wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_reply_with_too_many_descriptors_is_refused(run, taken_over):
    """Line 24: descriptors that a reply carries by the protocol, more than one."""
    with pytest.raises(WorkerError):
        run("wire:many_in_reply", b"40")
    reply = run("wire:many_in_reply", b"16")
    for fd in reply.fds:
        os.close(fd)
    with pytest.raises(isoload.WorkerError):
        taken_over.load(calling("wire:many_in_reply", b"40"))


def test_a_flood_does_not_use_up_the_parents_descriptors(run):
    """Line 24: with almost none left, the truncated message is refused and nothing leaks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [int(fd) for fd in os.listdir("/proc/self/fd")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(opened) + 40, hard))
    try:
        with pytest.raises((SandboxError, OSError)):
            run("wire:descriptors", b"253", wall=5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert run("resources:echo", b"well").data == b"well"


@pytest.mark.parametrize(
    "request_",
    [
        f"{value} {form}".encode()
        for value, form in (
            (2**63, "<Q"), (2**64 - 1, "<Q"), (2**63, ">Q"), (2**31 - 1, "<i"), (2**31 - 1, ">i"),
            (1 << 40, "<Q"), (2**32 - 1, "<I"), (-1, "<q"), (0, "<Q"),
        )
    ],
)  # fmt: skip
def test_a_length_is_not_believed(run, request_):
    """Line 25: 2^63 and its like as a length, in each byte order, and nothing after it."""
    before = psutil.Process().memory_info().rss
    with Ended(SandboxError, wall=1):
        run("wire:lengths", request_, wall=1)
    assert psutil.Process().memory_info().rss - before < 64 * MIB


def test_a_flood_of_bytes_is_bounded(run, taken_over):
    """Line 25: bytes without end, and a reply larger than is allowed."""
    before = psutil.Process().memory_info().rss
    for request in (b"\0", b"\xff", b"\x03"):
        with Ended(SandboxError, wall=3):
            run("wire:flood", request, wall=3, output=MIB)
    with pytest.raises(LimitError) as raised:
        run("wire:large_reply", b"20000000", output=MIB)
    assert raised.value.limit == "output"
    policy = isoload.Policy(limits=isoload.Limits(wall=3, output=MIB))
    with Ended(isoload.IsoloadError, wall=3):
        taken_over.load(calling("wire:flood", b"\0"), policy=policy)
    assert psutil.Process().memory_info().rss - before < 64 * MIB


def test_two_replies_are_one_and_trailing_bytes_are_none(run, taken_over):
    """Line 25: a second reply is never read; bytes after a manifest are refused."""
    with contextlib.suppress(SandboxError):  # two that write at once may spoil each other's frame
        assert len(run("wire:two_replies", b"first").data) < 100
    assert run("resources:echo", b"next").data == b"next"
    good = wire.encode_reply(loaded(7))
    assert taken_over.load(replying(good)) == 7
    for bad in (good + b"\0", good + good, good[:-1], b"", b"\0" + good):
        with pytest.raises(isoload.WorkerError):
            taken_over.load(replying(bad))


def test_a_slow_reply_meets_one_absolute_deadline(run, taken_over):
    """Line 26: a byte now and then does not stretch it."""
    for request in (b"\0", struct.pack("<QB", 1 << 20, 3)):
        with Ended(LimitError, WorkerError, wall=2):
            run("wire:slow", request, wall=2)
    with Ended(isoload.IsoloadError, wall=2):
        policy = isoload.Policy(limits=isoload.Limits(wall=2))
        taken_over.load(calling("wire:slow", b"\0"), policy=policy)


def test_a_worker_that_stops_itself_is_ended(run):
    """Line 26: SIGSTOP to itself and to its children, every other signal ignored."""
    with pytest.raises(LimitError) as raised:
        run("resources:will_not_die", wall=1.5)
    assert raised.value.limit == "wall"


def test_a_worker_that_shuts_its_channel_is_ended(run):
    """Line 26: the channel is closed and the worker lives on."""
    with Ended(SandboxError, wall=5):
        run("wire:close_all", wall=5)


def bombs():
    deep = b"\x91" * 200_000 + b"\xc0"
    head = msgspec.msgpack.encode(m.Reading("weights_only", "zip"))
    modulus = (1 << 61) - 1
    colliding = [(k * modulus) % (1 << 62) for k in range(1, 20_000)]
    keys = loaded(*colliding, m.Dict(keys=[*range(19_999)], values=[0] * 19_999))
    strings = loaded(*[str(n) for n in range(60_000)], m.Set(items=[*range(60_000)]))
    doubled = [0, *(m.Tuple([n, n]) for n in range(64))]
    hashed = loaded(*doubled, m.Dict(keys=[64], values=[0]))
    lists = [m.List([n + 1, n + 1]) for n in range(64)]
    floats = [float("nan")] * 5000
    return {
        "deep": deep,
        "deep inside": b"\x93\xa6loaded" + head + b"\x93\x00" + deep + b"\x90",
        "declared": b"\x93\xa6loaded" + head + b"\x93\x00\xdd\xff\xff\xff\xff\x90",
        "declared map": b"\xdf\xff\xff\xff\xff",
        "colliding keys": wire.encode_reply(keys),
        "many keys": wire.encode_reply(strings),
        "tuples hashed as a key": wire.encode_reply(hashed),
        "lists of lists": wire.encode_reply(loaded(*lists, 0, root=0)),
        "cycle": wire.encode_reply(loaded(m.List([0, 0, 0]))),
        "tuple in itself": wire.encode_reply(loaded(m.Tuple([0]))),
        "deep chain": wire.encode_reply(loaded(0, *(m.Tuple([n]) for n in range(100_000)))),
        "deep opaque": wire.encode_reply(loaded(0, *(m.Opaque("x", (n,)) for n in range(100_000)))),
        "nan keys": wire.encode_reply(loaded(*floats, m.Dict([*range(5000)], [0] * 5000))),
        "one, true and 1.0": wire.encode_reply(loaded(1, True, 1.0, m.Dict([0, 1, 2], [0, 1, 2]))),
        "huge int": wire.encode_reply(loaded(m.BigInt(b"\xff" * (1 << 20)))),
        "tensor under a long name": wire.encode_reply(
            loaded(
                m.Tensor(0, 0, 0, [1], [1]),
                *(m.Tuple([n]) for n in range(100_000)),
                m.List([100_000] * 1000),
                storages=[m.Storage(1, 0, 4, "cpu")],
            )
        ),
        "one tensor very often": wire.encode_reply(
            loaded(
                m.Tensor(0, 0, 0, [1], [1]),
                m.List([0] * 1_200_000),
                storages=[m.Storage(1, 0, 4, "cpu")],
            )
        ),
        "many nodes": wire.encode_reply(loaded(*([0] * 3_000_000))),
        "decimal": wire.encode_reply(loaded("1e999999999", m.Value("decimal.Decimal", [0]))),
        "fraction": wire.encode_reply(loaded(1, 0, m.Value("fractions.Fraction", [0, 1]))),
        "range": wire.encode_reply(loaded(0, 2**62, 1, m.Value("builtins.range", [0, 1, 2]))),
        "long string dtype": wire.encode_reply(loaded(m.NumpyDtype("<U2147483647"))),
        "object array": wire.encode_reply(loaded(m.ObjectArray([2**31, 2**31], []))),
        "size": wire.encode_reply(loaded(m.Size([2**62] * 1000))),
        "expanded": wire.encode_reply(
            loaded(m.Tensor(0, 0, 0, [2**40], [0]), storages=[m.Storage(1, 0, 4, "cpu")])
        ),
        "absent": wire.encode_reply(
            loaded(m.Tensor(0, 0, 0, [2**40], [1]), storages=[m.Storage(-1, 0, 2**42, "cpu")])
        ),
        "sparse size": wire.encode_reply(
            loaded(
                m.Tensor(0, 5, 0, [1, 0], [1, 1]),
                m.Tensor(0, 0, 0, [0], [1]),
                m.SparseCoo(0, 1, [2**60], True),
                storages=[m.Storage(1, 0, 0, "cpu")],
            )
        ),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_no_reply_takes_the_parent_long_or_much(taken_over, name):
    """Line 27: nesting, collisions, huge numbers, shared graphs, cycles, keys that are equal."""
    before = psutil.Process().memory_info().rss
    started = time.process_time()
    with contextlib.suppress(isoload.IsoloadError):
        report = taken_over.open(replying(BOMBS[name], b"\0" * 64), "cpu").report
        assert len(str(report)) < MIB
        assert sum(len(tensor.name) for tensor in report.tensors) < 64 * MIB
    assert time.process_time() - started < 10  # of this process's own time
    assert psutil.Process().memory_info().rss - before < 1 << 30


@pytest.mark.parametrize("entry", ["spin", "spin_forked"])
def test_cpu_time_is_counted_over_the_whole_tree(run, entry):
    """Line 28: an endless loop, and a chain of short-lived processes."""
    with Ended(LimitError, WorkerError, wall=6) as ended:
        run(f"resources:{entry}", cpu=1, wall=6)
    assert getattr(ended.error, "limit", "cpu") in ("cpu", "wall")


def test_close_has_a_deadline_of_its_own():
    """Line 29: workers that ignore everything run while the sandbox is closed."""
    box = Sandbox(preload=[f"{ENTRIES}.{module}" for module in MODULES], spares=1)
    errors = []

    def work(entry):
        try:
            box.run(f"{ENTRIES}.{entry}", b"\0", (), Limits(wall=60, processes=16))
        except SandboxError as error:
            errors.append(error)

    entries = ("resources:will_not_die", "resources:fork_bomb", "wire:slow", "wire:close_all")
    threads = [threading.Thread(target=work, args=(entry,)) for entry in entries]
    box.isolation()
    for thread in threads:
        thread.start()
    time.sleep(1)
    started = time.monotonic()
    box.close()
    assert time.monotonic() - started < 15
    for thread in threads:
        thread.join(outside.PATIENCE)
        assert not thread.is_alive()
    assert len(errors) == len(entries)
    assert any(isinstance(error, ClosedError) for error in errors)
    with pytest.raises(ClosedError):
        box.run(f"{ENTRIES}.resources:echo", b"")


def test_a_worker_is_ended_by_its_own_fault(run):
    """Line 33: a stack without end, a fault, an abort."""
    with pytest.raises((WorkerError, LimitError)):
        run("wire:die", str(int(signal.SIGSEGV)).encode(), wall=20)
    with pytest.raises(WorkerError) as raised:
        run("kernel:crash", b"x")
    assert raised.value.signal == signal.SIGSEGV


def test_the_parents_own_tensors_are_as_they_were(taken_over):
    """Line 22: what the parent holds of earlier loads is not touched by later attacks."""
    data = torch.arange(1024.0)
    storage = m.Storage(m.ARENA, 0, 4096, "cpu")
    good = loaded(m.Tensor(0, 0, 0, [1024], [1]), storages=[storage])
    value = taken_over.load(replying(good, data.numpy().tobytes()))
    limits = isoload.Limits(wall=1, memory=128 * MIB, processes=8)
    policy = isoload.Policy(limits=limits)
    for entry in ("resources:memfds", "wire:flood", "resources:fork_bomb"):
        with pytest.raises(isoload.IsoloadError):
            taken_over.load(calling(entry, b"\0"), policy=policy)
    assert torch.equal(value, data)
