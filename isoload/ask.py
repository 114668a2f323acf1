"""Ask fresh workers what a source holds: a light one, and where that leaves the file to it, one
that has torch.

A worker is hostile from the moment it opens the file: its answer is bytes to decode, and its
failure is words to make printable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

import sandbox
from sandbox import Limits, Reply, Reservation, Sandbox, printable

from . import manifest as m
from . import wire
from .errors import (
    CheckpointError,
    IsolationError,
    IsoloadError,
    LimitError,
    RefusedError,
    WorkerError,
)
from .policy import Policy
from .report import Report, make_report
from .source import Source

_LIGHT_ENTRY = "isoload.worker.light:main"
_TORCH_ENTRY = "isoload.worker.main:main"
_FOR_LIGHT = (b"PK\3\4", m.LEGACY_MAGIC)
"""How the files begin that a light worker may read."""
_HEAD = len(m.LEGACY_MAGIC)
_MAX_MESSAGE = 2000


@dataclass(frozen=True)
class Sandboxes:
    """`light` has not imported torch: its workers are cheap, and are asked first."""

    light: Sandbox
    torch: Sandbox


@dataclass(frozen=True)
class Answer:
    """What a worker replied, decoded and not yet checked. `timings`: seconds by stage."""

    source: Source
    reply: Reply
    message: m.Loaded | m.Failed
    timings: dict[str, float]

    @property
    def graph(self) -> m.Graph:
        assert isinstance(self.message, m.Loaded)  # `ask` has raised the other
        return self.message.graph

    def report(self, timings: dict[str, float], sha256: str | None) -> Report:
        """The report of it. `timings`: of the stages before and after."""
        return make_report(
            self.message.reading,
            source=self.source.name,
            size=self.source.size,
            graph=self.message.graph if isinstance(self.message, m.Loaded) else None,
            sha256=sha256.lower() if sha256 else None,
            layers=self.reply.isolation,
            usage=self.reply.usage,
            timings=timings,
        )


@contextmanager
def ask(
    boxes: Sandboxes,
    source: Source,
    policy: Policy,
    limits: Limits,
    safe_globals: Iterable[str],
    reserved: Reservation,
    *,
    tensors: bool,
) -> Iterator[Answer]:
    """Have fresh workers open the source. The replies' descriptors are closed afterwards."""
    request = m.Request(
        fallback=policy.fallback,
        tensors=tensors,
        max_output=limits.output or 0,
        lead=source.lead,
        safe_globals=[*safe_globals],
    )
    question = _Question(
        boxes, source, msgspec.msgpack.encode(request), limits, policy.require, reserved
    )
    try:
        # A short copy waits until a spare has its request: where there are few processors, it would
        # hold up what leads there.
        if source.copies_long or reserved.begun is not None:
            source.copy()
        reply, message = question.settled()
        if isinstance(message, m.Passed):
            raise WorkerError(f"{source.name}: the worker broke the protocol: it left the file")
        if source.warning:
            message.reading.warnings.append(source.warning)
        answer = Answer(source, reply, message, question.timings)
        if isinstance(message, m.Failed):
            raise _failure(message, answer)
        yield answer
    finally:
        question.close()


class _Question:
    """One request, and the workers that it is put to."""

    def __init__(
        self,
        boxes: Sandboxes,
        source: Source,
        request: bytes,
        limits: Limits,
        require: Collection[str],
        reserved: Reservation,
    ) -> None:
        self._boxes, self._source, self._request = boxes, source, request
        self._limits, self._require, self._reserved = limits, require, reserved
        self._fds: list[int] = []
        self.timings: dict[str, float] = {}

    def close(self) -> None:
        """Close what came with the replies."""
        for fd in self._fds:
            os.close(fd)

    def settled(self) -> tuple[Reply, m.Reply]:
        """The answer to the source's bytes as they are at the end."""
        outcome: tuple[Reply, m.Reply] | LimitError | WorkerError
        try:
            outcome = self._put()
        except (LimitError, WorkerError) as error:
            outcome = error
        started = time.perf_counter()
        if not self._source.settle():  # they read what is not there any more
            return self._put()
        if self._source.copied:
            self.timings["snapshot"] = time.perf_counter() - started
        if not isinstance(outcome, tuple):
            raise outcome
        return outcome

    def _put(self) -> tuple[Reply, m.Reply]:
        started = time.perf_counter()
        try:
            if os.pread(self._source.fd, _HEAD, 0).startswith(_FOR_LIGHT):
                reply, message = self._run(self._boxes.light, _LIGHT_ENTRY)
                if not isinstance(message, m.Passed):
                    return reply, message
            return self._run(self._boxes.torch, _TORCH_ENTRY)
        finally:
            self.timings["worker"] = time.perf_counter() - started

    def _run(self, box: Sandbox, entry: str) -> tuple[Reply, m.Reply]:
        with translated(self._source.name):
            reply = box.run(
                entry,
                self._request,
                [self._source.fd],
                self._limits,
                require=self._require,
                reserved=self._reserved,
                meanwhile=self._source.copy,
            )
        self._fds.extend(reply.fds)
        with blame_worker(self._source.name):
            return reply, wire.decode_reply(reply.data)


def _failure(message: m.Failed, answer: Answer) -> Exception:
    name = answer.source.name
    text = f"{name}: {printable(message.message, _MAX_MESSAGE)}"
    kind, _, limit = message.kind.partition(":")
    if kind == "refused":
        return RefusedError(text, answer.report({}, None))
    if kind == "limit":
        return LimitError(text, printable(limit, 40))
    if kind in ("damaged", "unsupported"):
        return CheckpointError(text)
    return WorkerError(f"{name}: the worker sent a failure of an unknown kind")


@contextmanager
def translated(name: str) -> Iterator[None]:
    """The sandbox's errors, as isoload's, with the file's name."""
    try:
        yield
    except sandbox.IsolationError as error:
        raise IsolationError(f"{name}: was not opened: {error}", error.missing) from error
    except sandbox.LimitError as error:
        raise LimitError(f"{name}: {error}", error.limit, error.allowed) from error
    except sandbox.WorkerError as error:
        raise WorkerError(f"{name}: {error}", error.signal, error.detail) from error
    except sandbox.ClosedError as error:
        raise IsoloadError(f"{name}: was not loaded: this Loader is closed") from error
    except sandbox.SandboxError as error:
        raise WorkerError(f"{name}: no worker could be started: {error}") from error


@contextmanager
def blame_worker(name: str) -> Iterator[None]:
    """What does not decode or check is the worker's doing: it broke the protocol."""
    try:
        yield
    except m.ManifestError as error:
        detail = printable(str(error), _MAX_MESSAGE)
        raise WorkerError(
            f"{name}: the worker broke the protocol ({detail}): treat the file as hostile",
            detail=detail,
        ) from error
    except sandbox.WorkerError as error:
        raise WorkerError(f"{name}: {error}", error.signal, error.detail) from error
