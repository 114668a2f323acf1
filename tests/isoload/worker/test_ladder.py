"""The ladder climbs as far as the policy lets it, and keeps every refusal on the way."""

from __future__ import annotations

import os
import pickle
import threading
from collections import Counter, OrderedDict
from typing import Any

import msgspec
import pytest
import torch

from isoload import manifest
from isoload.worker import ladder, main, readers
from isoload.worker.describe import describe
from isoload.worker.formats import legacy as legacy_format
from isoload.worker.formats import zip_
from isoload.worker.reading import INERT, Reading, Refused

from .files import failure, legacy, read, saved, source_of

REFUSED = {"w": torch.ones(2), "range": range(3)}


@pytest.mark.parametrize("write", [saved, legacy])
def test_what_weights_only_opens_is_not_read_inertly(write: Any) -> None:
    reading = read(write({"w": torch.ones(2)}), "none")
    assert reading.reader == "weights_only"
    assert reading.attempts == []


@pytest.mark.parametrize("write", [saved, legacy])
def test_what_it_refuses_is_read_inertly_where_the_policy_lets(write: Any) -> None:
    reading = read(write(REFUSED))
    assert reading.reader == "inert"
    assert [(attempt.reader, attempt.globals) for attempt in reading.attempts] == [
        ("weights_only", ["range"])
    ]
    assert failure(write(REFUSED), "none").kind == "refused"


def test_a_strict_policy_opens_the_classes_that_the_caller_lists() -> None:
    data = saved({"w": torch.ones(2), "range": range(3)})
    assert read(data, "none", safe=("builtins.range",)).reader == "inert"
    with pytest.raises(Refused):
        read(data, "none", safe=("builtins.slice",))


def test_a_strict_policy_opens_no_plain_pickle_whatever_the_caller_lists() -> None:
    with pytest.raises(Refused):
        read(pickle.dumps([1, 2]), "none", safe=("builtins.range",))


def _full(fallback: str) -> list[str]:
    """Which readers ran over a file that neither weights_only nor the inert reader opens."""
    called: list[str] = []

    def refuse() -> object:
        called.append("inert")
        raise Refused("not this one")

    def full() -> object:
        called.append("full")
        return {}

    request = manifest.Request(fallback=fallback)
    reading = Reading()
    try:
        ladder.climb(reading, request, ladder.Rung("inert", refuse), ladder.Rung("full", full))
    except Refused:
        called.append("refused")
    return called


def test_the_full_reader_runs_only_where_it_was_asked_for() -> None:
    assert _full("none") == ["inert", "refused"]
    assert _full("inert") == ["inert", "refused"]
    assert _full("full") == ["inert", "full"]


def test_the_full_reader_is_not_asked_about_damage() -> None:
    data = saved(REFUSED)
    request = manifest.Request(fallback="full")
    with source_of(data[: len(data) - 40]) as source, pytest.raises(Exception, match="central"):
        readers.read(source, request)


def _reply(data: bytes, **options: Any) -> tuple[manifest.Reply, list[int]]:
    options.setdefault("fallback", "inert")
    fd = os.memfd_create("test")
    os.write(fd, data)
    try:
        reply, fds = main.main(msgspec.msgpack.encode(manifest.Request(**options)), [fd])
    finally:
        os.close(fd)
    return msgspec.msgpack.decode(reply, type=manifest.Reply), fds


def test_a_failure_is_short_and_printable_and_keeps_what_was_met() -> None:
    name = "\x1b]52;c;\x07\u202e" + "x" * 500
    stream = b"\x80\x02c" + name.encode() + b"\nf\n)R\xff."
    reply, fds = _reply(stream)
    assert isinstance(reply, manifest.Failed)
    assert reply.kind == "damaged"
    assert fds == []
    texts = [reply.message, *reply.reading.globals, *(call.name for call in reply.reading.calls)]
    assert len(texts) == 3
    assert all(text.isprintable() and len(text) <= 700 for text in texts)


@pytest.mark.parametrize(
    "error", [SystemExit(0), KeyboardInterrupt(), RecursionError(), Exception()]
)
def test_whatever_a_reader_raises_becomes_a_reply(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(main, "read", fail)
    reply, _ = _reply(b"anything")
    assert isinstance(reply, manifest.Failed)
    assert type(error).__name__ in reply.message


def test_running_out_of_memory_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(main, "read", fail)
    reply, _ = _reply(b"anything")
    assert isinstance(reply, manifest.Failed)
    assert reply.kind == "limit:memory"


def test_a_request_that_is_none_becomes_a_reply() -> None:
    reply, fds = main.main(b"\xc1", [])
    assert isinstance(msgspec.msgpack.decode(reply, type=manifest.Reply), manifest.Failed)
    assert fds == []


def test_warming_up_leaves_no_thread_and_no_descriptor() -> None:
    main.warm_up()
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    main.warm_up()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def _parameter() -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.randn(2, 2))
    made.note = "kept"  # type: ignore[attr-defined]
    return made


def _module_dict() -> OrderedDict[str, Any]:
    made = OrderedDict(a=torch.ones(2))
    made._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return made


_BASE = torch.arange(24.0)
_MATRIX = torch.randn(4, 6)
GRAPHS: dict[str, Any] = {
    "views": [_BASE[3:10], _BASE.view(4, 6).t(), _BASE, _BASE[::2]],
    "parameters": [_parameter(), torch.nn.Buffer(torch.ones(2)), torch.ones(2, requires_grad=True)],
    "dtypes": [
        torch.zeros(3, dtype=getattr(torch, name))
        for name in ("bfloat16", "complex32", "uint16", "uint64", "float8_e4m3fn", "bool", "int8")
    ],
    "conjugated": [_BASE.to(torch.complex64).conj(), _BASE.to(torch.complex64).conj().imag],
    "quantized": [
        torch.quantize_per_tensor(_MATRIX, 0.1, 3, torch.qint8),
        torch.quantize_per_channel(
            _MATRIX, torch.rand(4).double() + 0.1, torch.zeros(4).long(), 0, torch.quint8
        ),
        torch.quantize_per_channel(_MATRIX, torch.rand(4) + 0.1, torch.rand(4), 0, torch.quint4x2),
    ],
    "sparse": [
        *(_MATRIX.relu().to_sparse(), _MATRIX.relu().to_sparse_csr(), _MATRIX.to_sparse_csc()),
        *(_MATRIX.to_sparse_bsr((2, 2)), _MATRIX.to_sparse_bsc((2, 2))),
    ],
    "meta": [torch.empty(3, 4, device="meta")],
    "empty": [torch.empty(0), torch.empty(0, 3), torch.empty(2, 0)],
    "values": [
        *(torch.Size([1, 2]), torch.float32, torch.device("cuda", 1), _module_dict()),
        *(Counter("abca"), 2**2000, -(2**100), float("nan"), "\ud800", 1 + 2j, bytearray(b"12")),
        {1, 2},
    ],
}


@pytest.mark.parametrize("write", [saved, legacy])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_inert_reader_gives_what_weights_only_gives(
    name: str, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(GRAPHS[name])
    first = _described(data)
    climb = ladder.climb

    def only_inert(reading: Reading, request: manifest.Request, *rungs: ladder.Rung) -> None:
        climb(reading, request, *(rung for rung in rungs if rung.reader == INERT))

    monkeypatch.setattr(zip_, "climb", only_inert)
    monkeypatch.setattr(legacy_format, "climb", only_inert)
    assert _described(data) == ("inert", *first[1:])
    assert first[0] in ("weights_only", "inert")


def _described(data: bytes) -> tuple[str, str, list[tuple[str, bytes | None]]]:
    request = manifest.Request(fallback="inert")
    with source_of(data) as source:
        reading = readers.read(source, request)
        graph, arena = describe(reading, tensors=True, budget=request)
        held: list[tuple[str, bytes | None]] = []
        for storage in graph.storages:
            if storage.segment == manifest.ABSENT:
                held.append((storage.location, None))
                continue
            fd = source.fd if storage.segment == manifest.SOURCE else arena
            assert fd is not None
            held.append((storage.location, os.pread(fd, storage.nbytes, storage.offset)))
        if arena is not None:
            os.close(arena)
    return reading.reader, repr(graph.nodes), held
