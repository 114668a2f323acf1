"""Report: what happened in one load, as an object, as text, as JSON.

It is built from the manifest and from what the sandbox measured. All text in it that came from the
worker is printable and bounded: it goes to terminals and logs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sandbox import Isolation, Usage, printable

from .listing import TensorInfo, list_tensors
from .manifest import Graph, Reading

_MAX_ENTRIES = 1000
_MAX_NAME = 300
_MAX_MESSAGE = 2000


@dataclass(frozen=True)
class Attempt:
    """A reader that did not open the file: why, and the globals it stumbled over."""

    reader: str
    error: str
    message: str
    globals: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """What the file asked to be called, and was not: the name, and the arguments as short text."""

    name: str
    args: str

    def __str__(self) -> str:
        return f"{self.name}({self.args})"


@dataclass(frozen=True)
class Report:
    """What happened in one load.

    reader: which one opened the file ("weights_only", "inert", "full", …), "" if none did
    container: what the file is ("zip", "legacy", "torchscript", …)
    attempts: the readers that refused it before, and why
    globals: every class and function that the file names
    calls: what the file asked to be called and was not
    sha256: of the bytes that were opened, where it was asked for
    layers: each confinement layer as it was for this worker
    usage: wall and cpu seconds, peak bytes of memory
    timings: seconds by stage
    warnings: what a reader found odd about the file
    """

    source: str
    size: int
    reader: str = ""
    container: str = ""
    attempts: tuple[Attempt, ...] = ()
    globals: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    warnings: tuple[str, ...] = ()
    sha256: str | None = None
    layers: Isolation | None = None
    usage: Usage | None = None
    timings: dict[str, float] = field(default_factory=dict)
    _graph: Graph | None = field(default=None, repr=False, compare=False)

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Each tensor once: where it lies in the object, dtype, shape and bytes."""
        return tuple(list_tensors(self._graph)) if self._graph is not None else ()

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors as they are indexed (elements × size of one), views counted each."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def globals_by_kind(self) -> dict[str, tuple[str, ...]]:
        """The globals by whose they are: "torch", "numpy", "standard library" or "other"."""
        kinds: dict[str, list[str]] = {}
        for name in self.globals:
            kinds.setdefault(_kind(name), []).append(name)
        return {kind: tuple(names) for kind, names in kinds.items()}

    def to_dict(self) -> dict[str, Any]:
        """The whole report as values that `json.dumps` takes."""
        return {
            "source": self.source,
            "size": self.size,
            "sha256": self.sha256,
            "reader": self.reader,
            "container": self.container,
            "attempts": [
                {
                    "reader": a.reader,
                    "error": a.error,
                    "message": a.message,
                    "globals": [*a.globals],
                }
                for a in self.attempts
            ],
            "globals": [*self.globals],
            "globals_by_kind": {kind: [*names] for kind, names in self.globals_by_kind.items()},
            "calls": [{"name": c.name, "args": c.args} for c in self.calls],
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "tensor_bytes": self.tensor_bytes,
            "warnings": [*self.warnings],
            "layers": self.layers.to_dict() if self.layers else {},
            "usage": (
                {"wall": self.usage.wall, "cpu": self.usage.cpu, "memory": self.usage.memory}
                if self.usage
                else {}
            ),
            "timings": self.timings,
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def make_report(
    reading: Reading,
    *,
    source: str,
    size: int,
    graph: Graph | None = None,
    sha256: str | None = None,
    layers: Isolation | None = None,
    usage: Usage | None = None,
    timings: dict[str, float] | None = None,
) -> Report:
    """A report of a worker's `reading`, its text made printable and cut to a bounded length."""
    return Report(
        source=source,
        size=size,
        reader=printable(reading.reader, _MAX_NAME),
        container=printable(reading.container, _MAX_NAME),
        attempts=tuple(
            Attempt(
                printable(a.reader, _MAX_NAME),
                printable(a.error, _MAX_NAME),
                printable(a.message, _MAX_MESSAGE),
                _printables(a.globals),
            )
            for a in reading.attempts[:_MAX_ENTRIES]
        ),
        globals=_printables(reading.globals),
        calls=tuple(
            Call(printable(c.name, _MAX_NAME), printable(c.args, _MAX_NAME))
            for c in reading.calls[:_MAX_ENTRIES]
        ),
        warnings=tuple(printable(w, _MAX_MESSAGE) for w in reading.warnings[:_MAX_ENTRIES]),
        sha256=sha256,
        layers=layers,
        usage=usage,
        timings=timings or {},
        _graph=graph,
    )


def _printables(names: list[str]) -> tuple[str, ...]:
    return tuple(printable(name, _MAX_NAME) for name in names[:_MAX_ENTRIES])


def _lines(report: Report) -> list[str]:
    lines = [f"{report.source}: {report.size:,} bytes, {report.container or 'unknown container'}"]
    if report.sha256:
        lines.append(f"  sha256      {report.sha256}")
    lines.append(f"  reader      {report.reader or 'none opened it'}")
    for attempt in report.attempts:
        lines.append(f"  refused by  {attempt.reader}: {attempt.error}: {_short(attempt.message)}")
    if report.tensors:
        lines.append(f"  tensors     {len(report.tensors):,}, {report.tensor_bytes:,} bytes")
    for kind, names in report.globals_by_kind.items():
        more = f", … and {len(names) - 12} more" if len(names) > 12 else ""
        lines.append(f"  globals     {kind}: {', '.join(names[:12])}{more}")
    for title, entries in (
        ("not called", report.calls),
        ("warning", report.warnings),
    ):
        lines += [f"  {title:<11} {entry}" for entry in entries[:20]]
        if len(entries) > 20:
            lines.append(f"  {title:<11} … and {len(entries) - 20} more")
    if report.layers is not None:
        for layer in report.layers.layers:
            cause = f": {layer.cause}" if layer.cause else ""
            lines.append(
                f"  layer       {layer.name} {layer.state.value} ({layer.mechanism}){cause}"
            )
    if report.usage is not None:
        usage = report.usage
        lines.append(
            f"  usage       {usage.wall * 1000:.1f} ms, {usage.cpu * 1000:.1f} ms of cpu, "
            f"{usage.memory / 1e6:.1f} MB at most"
        )
    for stage, seconds in report.timings.items():
        lines.append(f"  {'timing':<11} {stage} {seconds * 1000:.1f} ms")
    return lines


def _kind(name: str) -> str:
    top = name.partition(".")[0]
    if top in ("torch", "numpy"):
        return top
    return "standard library" if top in sys.stdlib_module_names else "other"


def _short(message: str) -> str:
    return message if len(message) <= 160 else message[:159] + "…"
