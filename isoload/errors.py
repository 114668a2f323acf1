"""What isoload raises.

    IsoloadError
    ├ CheckpointError    the file is no checkpoint, is damaged, or of a kind that is not supported
    ├ RefusedError       the policy refuses it; `.report` says at which reader and for which globals
    ├ IntegrityError     the digest does not hold
    ├ LimitError         memory, time, size, nodes …; `.limit` names it, with what was `.allowed`
    ├ IsolationError     the host lacks a required layer; `.missing` holds layer, cause and remedy
    ├ WorkerError        the worker died or broke the protocol; `.signal`, `.detail` (printable)
    └ InternalError      a bug in isoload

A missing or unreadable path raises the usual OSError, a wrong argument TypeError or ValueError,
both before any worker starts. Text that came from a worker is made printable before it enters a
message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox import Layer

    from .report import Report


class IsoloadError(Exception):
    """Every error that isoload raises itself."""


class CheckpointError(IsoloadError):
    """The file is no checkpoint, is damaged, or is of a kind that is not supported."""


class RefusedError(IsoloadError):
    """The policy's last reader refused the file. `report` holds each attempt and the globals it
    met."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[RefusedError], tuple[str, Report]]:
        return RefusedError, (str(self), self.report)


class IntegrityError(IsoloadError):
    """The bytes are not those that the caller's digest names. Nothing was returned."""


class LimitError(IsoloadError):
    """A limit was met.

    `limit` is one of "memory", "wall", "cpu", "processes", "open_files", "output", "source" or
    "nodes"; `allowed` is in bytes, seconds or a count, as `Limits` has it.
    """

    def __init__(self, message: str, limit: str, allowed: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[LimitError], tuple[str, str, float | None]]:
        return LimitError, (str(self), self.limit, self.allowed)


class IsolationError(IsoloadError):
    """The host cannot give a layer that the policy requires. The file was not opened."""

    def __init__(self, message: str, missing: tuple[Layer, ...]) -> None:
        super().__init__(message)
        self.missing = missing

    def __reduce__(self) -> tuple[type[IsolationError], tuple[str, tuple[Layer, ...]]]:
        return IsolationError, (str(self), self.missing)


class WorkerError(IsoloadError):
    """The worker died, or what it sent breaks the protocol: treat the file as hostile.

    `signal` is the number of the signal that ended it, or None.
    """

    def __init__(self, message: str, signal: int | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.signal = signal
        self.detail = detail

    def __reduce__(self) -> tuple[type[WorkerError], tuple[str, int | None, str]]:
        return WorkerError, (str(self), self.signal, self.detail)


class InternalError(IsoloadError):
    """A bug in isoload. Please report it with the traceback and, if you may, the file."""
