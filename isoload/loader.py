"""One load from start to end, in the order of the flow: source, worker, manifest, rebuild,
placement.

The worker is hostile from the moment it opens the file: what it sends is bytes to decode and
numbers to check. Nothing here unpickles, and nothing here knows how a reader works.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

import sandbox
from sandbox import Limits, Reply, Sandbox, printable

from . import manifest as m
from . import wire
from .check import check_graph
from .errors import (
    CheckpointError,
    IsolationError,
    IsoloadError,
    LimitError,
    RefusedError,
    WorkerError,
)
from .opaque import find_state_dict
from .placement import Device, Placement
from .policy import Policy
from .rebuild import allowed_classes, rebuild
from .report import Report, make_report
from .segments import Segments
from .source import Source, SourceLike, check_sha256, open_source

_ENTRY = "isoload.worker.main:main"
_WARM_UP = "isoload.worker.rehearsal:prepare"
_REHEARSAL = "isoload.worker.rehearsal:rehearse"
_PRELOAD = ("torch", "numpy", "safetensors", "msgspec", "isoload.worker.main")
_MAX_MESSAGE = 2000


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint: the `object`, and the `report` of how it was opened."""

    object: Any
    report: Report


class Loader:
    """Loads checkpoints, each in a fresh confined worker. Thread-safe; use it as a context manager.

    policy: for calls that name none (default `Policy.third_party()`)
    spares: confined workers that are kept ready; each saves some milliseconds a load
    max_workers: how many may run at once; None: as many as the caller has threads
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        spares: int = 1,
        max_workers: int | None = None,
    ) -> None:
        self._policy = _checked_policy(policy, Policy())
        self._sandbox = Sandbox(
            preload=_PRELOAD,
            warm_up=_WARM_UP,
            rehearsal=_REHEARSAL,
            spares=spares,
            max_workers=max_workers,
        )
        self._sandbox.start()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote and every worker."""
        self._sandbox.close()

    def load(
        self,
        f: SourceLike,
        device: Device = None,
        *,
        mmap: bool = False,
        sha256: str | None = None,
        policy: Policy | None = None,
    ) -> Any:
        """The object that the checkpoint holds. As `isoload.load`."""
        return self.open(f, device, mmap=mmap, sha256=sha256, policy=policy).object

    def open(
        self,
        f: SourceLike,
        device: Device = None,
        *,
        mmap: bool = False,
        sha256: str | None = None,
        policy: Policy | None = None,
    ) -> Loaded:
        """The object and its report. As `isoload.open`."""
        check_sha256(sha256)
        policy = _checked_policy(policy, self._policy)
        placement = Placement(device)
        allow = allowed_classes(policy.allow)
        started = time.perf_counter()
        reopen = None if sha256 is not None and not mmap else self._reopen
        with open_source(f, mmap=mmap, max_source=policy.max_source, reopen=reopen) as source:
            timings = {"source": time.perf_counter() - started}
            digest = source.start_digest() if sha256 is not None else None
            limits = policy.limits.resolved(source.size)
            with self._ask(source, policy, limits, [*allow], tensors=True) as (reply, message):
                timings["worker"] = time.perf_counter() - started - timings["source"]
                if digest is not None and sha256 is not None:
                    digest.verify(sha256, source.name)
                with _blame_worker(source.name):
                    held = source.size if source.held else 0
                    segments = Segments(source.fd, held, reply.fds, limits.output or 0)
                    check_graph(message.graph, segments.sizes)
                before = time.perf_counter()
                with _blame_worker(source.name):
                    obj = rebuild(message.graph, segments, placement, allow)
                timings["rebuild"] = time.perf_counter() - before
                report = _report(message, source, reply, timings, sha256)
        return Loaded(obj, report)

    def inspect(
        self, f: SourceLike, *, sha256: str | None = None, policy: Policy | None = None
    ) -> Report:
        """What the file is and holds. As `isoload.inspect`."""
        check_sha256(sha256)
        policy = _checked_policy(policy, self._policy)
        started = time.perf_counter()
        with open_source(f, mmap=False, max_source=policy.max_source) as source:
            timings = {"source": time.perf_counter() - started}
            digest = source.start_digest()
            allow = allowed_classes(policy.allow)
            limits = policy.limits.resolved(source.size)
            with self._ask(source, policy, limits, [*allow], tensors=False) as (reply, message):
                timings["worker"] = time.perf_counter() - started - timings["source"]
                if sha256 is not None:
                    digest.verify(sha256, source.name)
                with _blame_worker(source.name):
                    check_graph(message.graph, [source.size])
                return _report(message, source, reply, timings, digest.hexdigest())

    def state_dict(
        self,
        f: SourceLike,
        device: Device = None,
        *,
        key: str | None = None,
        mmap: bool = False,
        sha256: str | None = None,
        policy: Policy | None = None,
    ) -> dict[str, torch.Tensor]:
        """The weights, flat. As `isoload.state_dict`."""
        obj = self.load(f, device, mmap=mmap, sha256=sha256, policy=policy)
        return find_state_dict(obj, key)

    async def aload(self, f: SourceLike, device: Device = None, **options: Any) -> Any:
        """`load` without blocking the event loop. Takes the same keywords."""
        return await asyncio.to_thread(self.load, f, device, **options)

    async def aopen(self, f: SourceLike, device: Device = None, **options: Any) -> Loaded:
        """`open` without blocking the event loop. Takes the same keywords."""
        return await asyncio.to_thread(self.open, f, device, **options)

    async def ainspect(self, f: SourceLike, **options: Any) -> Report:
        """`inspect` without blocking the event loop. Takes the same keywords."""
        return await asyncio.to_thread(self.inspect, f, **options)

    def _reopen(self, fd: int) -> int:
        with _translated(printable(os.readlink(f"/proc/self/fd/{fd}"), 512)):
            return self._sandbox.reopen(fd)

    @contextmanager
    def _ask(
        self,
        source: Source,
        policy: Policy,
        limits: Limits,
        safe_globals: list[str],
        *,
        tensors: bool,
    ) -> Iterator[tuple[Reply, m.Loaded]]:
        """Have a fresh worker open the source. The reply's descriptors are closed afterwards."""
        request = m.Request(
            fallback=policy.fallback,
            tensors=tensors,
            max_output=limits.output or 0,
            held=source.held,
            safe_globals=safe_globals,
        )
        with _translated(source.name):
            reply = self._sandbox.run(
                _ENTRY,
                msgspec.msgpack.encode(request),
                [source.fd],
                limits,
                require=policy.require,
            )
        try:
            with _blame_worker(source.name):
                message = wire.decode_reply(reply.data)
            if source.warning:
                message.reading.warnings.append(source.warning)
            if isinstance(message, m.Failed):
                raise _failure(message, source, reply)
            yield reply, message
        finally:
            for fd in reply.fds:
                os.close(fd)


def _checked_policy(policy: Policy | None, default: Policy) -> Policy:
    if policy is None:
        return default
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, not {type(policy).__name__}")
    return policy


def _report(
    message: m.Loaded | m.Failed,
    source: Source,
    reply: Reply,
    timings: dict[str, float],
    sha256: str | None,
) -> Report:
    return make_report(
        message.reading,
        source=source.name,
        size=source.size,
        graph=message.graph if isinstance(message, m.Loaded) else None,
        sha256=sha256.lower() if sha256 else None,
        layers=reply.isolation,
        usage=reply.usage,
        timings=timings,
    )


def _failure(message: m.Failed, source: Source, reply: Reply) -> Exception:
    text = f"{source.name}: {printable(message.message, _MAX_MESSAGE)}"
    kind, _, limit = message.kind.partition(":")
    if kind == "refused":
        return RefusedError(text, _report(message, source, reply, {}, None))
    if kind == "limit":
        return LimitError(text, printable(limit, 40))
    if kind in ("damaged", "unsupported"):
        return CheckpointError(text)
    return WorkerError(f"{source.name}: the worker sent a failure of an unknown kind")


@contextmanager
def _translated(name: str) -> Iterator[None]:
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
def _blame_worker(name: str) -> Iterator[None]:
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
