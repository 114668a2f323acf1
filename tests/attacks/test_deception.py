"""E. A worker against those who read: error text, names, output, endings, forged weights."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import signal
import subprocess
import unicodedata

import pytest
import torch

import isoload
from isoload import manifest as m
from sandbox import LimitError, SandboxError, WorkerError, check_segment, create_memfd, seal
from tests.attacks import outside
from tests.attacks.conftest import calling, loaded, replying
from tests.attacks.entries.words import ESCAPES

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("unharmed")]

SANDBOXES = ("box", "taken_over", "loader")
CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def assert_plain(text: str, limit: int = 20_000) -> None:
    """Nothing in it that a terminal or a log takes for anything but text, and not too much."""
    assert len(text) < limit
    odd = {character for character in text if unicodedata.category(character) in CONTROLS}
    assert odd <= {"\n"}, odd


def said_by(error: BaseException) -> list[str]:
    """Every text that an error and what it was raised from carry."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), *map(str, vars(error).values())]
        texts += [str(argument) for argument in error.args]
        error = error.__cause__
    return texts


@pytest.mark.parametrize("length", [100, 100_000, 20_000_000])
def test_error_text_is_plain_and_short(run, length):
    """Line 30: escapes, OSC 52, bidi, CR and LF, NUL, lone surrogates, megabytes of them."""
    with pytest.raises(SandboxError) as raised:
        run("words:raise_text", str(length).encode())
    for text in said_by(raised.value):
        assert_plain(text)
        assert "\n" not in text


@pytest.mark.parametrize(
    "reply",
    [
        m.Failed("damaged", ESCAPES[:-4] * 100, m.Reading("", "")),
        m.Failed("refused", ESCAPES[:60], m.Reading(ESCAPES[:60], ESCAPES[:60])),
        m.Failed("limit:" + ESCAPES[:60], ESCAPES[:60], m.Reading("", "")),
        m.Failed(ESCAPES[:60], ESCAPES[:60], m.Reading("", "")),
        m.Failed(
            "refused",
            "x",
            m.Reading(
                "x",
                "x",
                attempts=[m.Attempt(*[ESCAPES[:60]] * 3, [ESCAPES[:60]] * 2000)] * 50,
                globals=[ESCAPES[:60]] * 5000,
                calls=[m.Call(ESCAPES[:60], ESCAPES[:60] * 10)] * 5000,
                warnings=[ESCAPES[:60] * 1000] * 1200,
            ),
        ),
    ],
    ids=["message", "reader", "limit", "kind", "report"],
)
def test_a_failures_words_are_plain_and_short(taken_over, reply):
    """Line 30: in each text of the manifest's Failed, and in the report that comes with it."""
    with pytest.raises(isoload.IsoloadError) as raised:
        taken_over.load(replying(reply))
    assert not isinstance(raised.value, isoload.InternalError)
    for text in said_by(raised.value):
        assert_plain(text, 1 << 20)
    report = getattr(raised.value, "report", None)
    if report is not None:
        assert_plain(str(report), 1 << 20)
        for text in _texts(report.to_dict()):
            assert_plain(text)


def test_a_results_words_are_plain_and_short(taken_over):
    """Line 30: reader, container, warnings, names of tensors and classes in a report and a repr."""
    bad = ESCAPES[:60]
    storage = m.Storage(m.ARENA, 0, 8, "cpu")
    reply = loaded(
        bad,
        m.Tensor(0, 0, 0, [2], [1]),
        m.Dict([0], [1]),
        m.Opaque(bad * 20, (0,), {bad: 1, bad * 1000: 1}, state=2),
        m.List([2, 3]),
        storages=[storage],
        reader=bad,
        container=bad,
        warnings=[bad * 1000] * 1200,
        globals=[bad] * 5000,
    )
    try:
        result = taken_over.open(replying(reply, b"\0" * 8), "cpu")
    except isoload.IsoloadError as error:
        for text in said_by(error):
            assert_plain(text)
        return
    assert_plain(str(result.report), 1 << 20)
    assert_plain(repr(result.object[1]))
    for text in _texts(result.report.to_dict()):
        assert_plain(text)


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


@pytest.mark.parametrize(
    "name",
    [
        "SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration",
        "MemoryError", "RecursionError", "TimeoutError", "AssertionError", "BaseExceptionGroup",
        "IsolationError", "IntegrityError", "\x1b[31mRed", "os.system", "x" * 100_000,
    ],
    ids=lambda name: name[:20].strip("\x1b"),
)  # fmt: skip
def test_an_exceptions_name_decides_nothing(run, taken_over, name):
    """Line 31: the parent raises one of a fixed set, whatever the worker's was called."""
    with pytest.raises(SandboxError) as raised:
        run("words:raise_named", name.encode())
    assert type(raised.value) in (WorkerError, LimitError)
    with pytest.raises(isoload.IsoloadError) as raised:
        taken_over.load(calling("words:raise_named", name.encode()))
    assert type(raised.value) in (isoload.WorkerError, isoload.LimitError)
    for text in said_by(raised.value):
        assert_plain(text)


def test_an_exception_that_attacks_its_reader_is_a_worker_error(run):
    """Line 31: str() that exits, repr() that kills, __reduce__ that runs a program."""
    with pytest.raises(WorkerError) as raised:
        run("words:raise_lying")
    assert not isinstance(raised.value.__cause__, SystemExit)
    for text in said_by(raised.value):
        assert_plain(text)


def test_nothing_is_written_to_the_callers_output_or_log(run, taken_over, capfd, caplog):
    """Line 32: stdout, stderr, descriptors 0 to 2, and log lines that a worker would forge."""
    with caplog.at_level(logging.DEBUG):
        assert run("words:write_all", b"\x1b]0;attack\x07forged\n").data == b"wrote"
        with pytest.raises(isoload.IsoloadError):
            taken_over.load(calling("words:write_all", b"forged\n"))
        with pytest.raises(SandboxError):
            run("words:raise_text", b"1000")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert "forged" not in caplog.text.replace("\\nINFO forged", "")
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("status", [b"0", b"1", b"255"])
def test_an_exit_without_a_reply_is_an_error(run, taken_over, status):
    """Line 33: an exit status of success among them."""
    with pytest.raises(WorkerError):
        run("wire:end", status)
    with pytest.raises(isoload.WorkerError):
        taken_over.load(calling("wire:end", status))


def test_a_reply_holds_though_its_worker_crashes_after_it(run):
    """Line 33: killed at a random moment around the reply: the reply as it is, or an error."""
    outcomes = set()
    for _ in range(30):
        try:
            outcomes.add(run("wire:reply_then_crash", b"whole" * 1000).data)
        except WorkerError:
            outcomes.add(b"error")
    assert outcomes <= {b"whole" * 1000, b"error"}


def test_nobody_else_is_killed_when_workers_end_by_themselves(run):
    """Line 33: workers that end at any moment, while processes with fresh pids come and go."""
    canaries = []
    try:
        for _ in range(30):
            try:
                run("wire:quit_at_random", b"0.01")
            except SandboxError:
                canaries.append(subprocess.Popen(["sleep", "600"]))
        assert [canary.poll() for canary in canaries] == [None] * len(canaries)
    finally:
        for canary in canaries:
            canary.kill()
            canary.wait()


def save(obj) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def test_forged_weights_are_not_detected_but_a_changed_file_is(taken_over, loader):
    """Line 34: a non-goal. A worker may return any weights; the digest is the file's."""
    storage = m.Storage(m.ARENA, 0, 8, "cpu")
    reply = loaded(m.Tensor(0, 0, 0, [2], [1]), storages=[storage])
    forged = replying(reply, torch.ones(2).numpy().tobytes())
    digest = hashlib.sha256(forged).hexdigest()
    assert taken_over.load(forged, sha256=digest).tolist() == [1, 1]
    honest = save({"a": torch.ones(2)})
    with pytest.raises(isoload.IntegrityError):
        loader.load(
            honest.replace(b"\x80\x3f", b"\x80\x40", 1), sha256=hashlib.sha256(honest).hexdigest()
        )


@pytest.mark.parametrize(
    ("mmap", "padding"),
    [(False, 0), (True, 0), (False, 16 << 20)],
    ids=["snapshot", "mmap", "lent while its snapshot is taken"],
)
def test_the_file_is_as_it_was(taken_over, attack, tmp_path, mmap, padding):
    """Line 15: its bytes, size, mode, owner, times, attributes; the caller's position and flags."""
    file = tmp_path / "model.pt"
    file.write_bytes(calling("shared:spoil", bytes(padding)))
    os.chmod(file, 0o640)
    before = _facts(file)
    with file.open("rb") as opened:
        with pytest.raises(isoload.IsoloadError):
            taken_over.load(file, mmap=mmap)
        with pytest.raises(isoload.IsoloadError):
            taken_over.load(opened)
        assert os.get_blocking(opened.fileno())
        assert opened.tell() == file.stat().st_size
    assert _facts(file) == before


def test_the_bytes_of_a_mapped_file_are_as_they_were(taken_over, tmp_path):
    """Line 15: whatever becomes of the file's mode, nothing is written through its descriptor."""
    file = tmp_path / "model.pt"
    file.write_bytes(calling("shared:spoil"))
    with pytest.raises(isoload.IsoloadError):
        taken_over.load(file, mmap=True)
    assert file.read_bytes() == calling("shared:spoil")
    assert file.stat().st_nlink == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def _facts(file):
    status = file.stat()
    return (
        file.read_bytes(), status.st_size, oct(status.st_mode), status.st_uid, status.st_gid,
        status.st_mtime_ns, status.st_nlink, os.listxattr(file), os.listdir(file.parent),
    )  # fmt: skip


def test_a_snapshot_cannot_be_changed_by_any_means(attack, run):
    """Line 15: a sealed memory file: write, map, splice, truncate, punch, grow, reopen."""
    fd = create_memfd("source")
    try:
        os.write(fd, b"snapshot" * 1000)
        seal(fd)
        attack("shared:spoil", fds=[fd])
        assert os.pread(fd, 8000, 0) == b"snapshot" * 1000
        assert check_segment(fd, 8000) == 8000
    finally:
        os.close(fd)


def test_what_killed_a_worker_is_told_from_outside(box):
    """Line 33: the signal in the error is the kernel's word, not the worker's."""
    errors: list[SandboxError] = []
    with outside.held(box, errors=errors) as worker:
        os.kill(worker.pid, signal.SIGKILL)
    assert [error.signal for error in errors] == [signal.SIGKILL]
