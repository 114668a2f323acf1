"""One load from start to end, in the order of the flow: source, worker, manifest, rebuild,
placement.

Nothing here unpickles, and nothing here knows how a reader works.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from sandbox import Sandbox, printable

from .ask import Sandboxes, ask, blame_worker, translated
from .check import check_graph
from .opaque import find_state_dict
from .placement import Device, Placement
from .policy import Policy
from .preparation import prepare
from .rebuild import allowed_classes, rebuild
from .report import Report
from .segments import Segments
from .source import SourceLike, check_sha256, is_at_hand, open_source

_TORCH = ("torch", "numpy", "safetensors", "msgspec", "isoload.worker.main")


def _sandboxes(spares: int, max_workers: int | None) -> Sandboxes:
    light = Sandbox(
        preload=("isoload.worker.light",),
        warm_up="isoload.worker.light:prepare",
        warm_up_data=prepare(),
        rehearsal="isoload.worker.light:rehearse",
        spares=spares,
        max_workers=max_workers,
    )
    torch = Sandbox(
        preload=_TORCH,
        warm_up="isoload.worker.rehearsal:prepare",
        rehearsal="isoload.worker.rehearsal:rehearse",
        spares=spares,
        beside=light,
        reopens=False,
    )
    return Sandboxes(light, torch)


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint: the `object`, and the `report` of how it was opened."""

    object: Any
    report: Report


class Loader:
    """Loads checkpoints, each in fresh confined workers. Thread-safe; use it as a context manager.

    policy: for calls that name none (default `Policy.third_party()`)
    spares: confined workers that are kept ready; each saves some milliseconds a load. Where files
        need a worker with torch (not plain weights, not a pickled module), as many of those, too
    max_workers: how many may run at once; None: as many as the caller has threads
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        spares: int = 1,
        max_workers: int | None = None,
        _ahead: bool = True,
    ) -> None:
        self._policy = _checked_policy(policy, Policy())
        self._boxes = _sandboxes(spares, max_workers)
        self._boxes.light.start()
        if _ahead:
            self._warm_up()

    def _warm_up(self) -> None:
        """Begin to start what a load may need, without waiting for it: with it the import of torch
        in a process beside this one."""
        self._boxes.light.start()
        self._boxes.torch.start(spares=False)  # they are kept once a file has needed one

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygotes and every worker."""
        self._boxes.torch.close()
        self._boxes.light.close()

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
        with (
            self._boxes.light.reserve(begin=reopen is not None and is_at_hand(f)) as reserved,
            open_source(f, mmap=mmap, max_source=policy.max_source, reopen=reopen) as source,
        ):
            timings = {"source": time.perf_counter() - started}
            digest = source.start_digest() if sha256 is not None else None
            limits = policy.limits.resolved(source.size)
            with ask(self._boxes, source, policy, limits, allow, reserved, tensors=True) as answer:
                if digest is not None and sha256 is not None:
                    digest.verify(sha256, source.name)
                with blame_worker(source.name):
                    segments = Segments(source.memory(), answer.reply.fds, limits.output or 0)
                    check_graph(answer.graph, segments.sizes)
                before = time.perf_counter()
                with blame_worker(source.name):
                    obj = rebuild(answer.graph, segments, placement, allow)
                timings |= answer.timings
                timings["rebuild"] = time.perf_counter() - before
                report = answer.report(timings, sha256)
        return Loaded(obj, report)

    def inspect(
        self, f: SourceLike, *, sha256: str | None = None, policy: Policy | None = None
    ) -> Report:
        """What the file is and holds. As `isoload.inspect`."""
        check_sha256(sha256)
        policy = _checked_policy(policy, self._policy)
        started = time.perf_counter()
        with (
            self._boxes.light.reserve(begin=False) as reserved,
            open_source(f, mmap=False, max_source=policy.max_source) as source,
        ):
            timings = {"source": time.perf_counter() - started}
            digest = source.start_digest()
            allow = allowed_classes(policy.allow)
            limits = policy.limits.resolved(source.size)
            with ask(self._boxes, source, policy, limits, allow, reserved, tensors=False) as answer:
                timings |= answer.timings
                if sha256 is not None:
                    digest.verify(sha256, source.name)
                with blame_worker(source.name):
                    check_graph(answer.graph, [source.size])
                return answer.report(timings, digest.hexdigest())

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
        with translated(printable(os.readlink(f"/proc/self/fd/{fd}"), 512)):
            return self._boxes.light.reopen(fd)


def _checked_policy(policy: Policy | None, default: Policy) -> Policy:
    if policy is None:
        return default
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, not {type(policy).__name__}")
    return policy
