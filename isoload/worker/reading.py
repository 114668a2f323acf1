"""What a reader hands on: the object graph, how it was read, and where its bytes lie; and its
failures.

No reader lives here, and nothing here looks into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from isoload import manifest
from sandbox import printable

WEIGHTS_ONLY = "weights_only"
INERT = "inert"
FULL = "full"
"""The readers of the ladder."""

MAX_CALLS = 1_000
MAX_GLOBALS = 10_000
MAX_WARNINGS = 50
MAX_MESSAGE = 600
"""Characters of a failure's message, or a warning's."""


class Failure(Exception):
    """The checkpoint cannot be read. `kind` is that of `manifest.Failed`."""

    kind = "damaged"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Damaged(Failure):
    """The bytes are not what their own format says: truncated, flipped, or never whole."""


class Unsupported(Failure):
    """This is no checkpoint, or one of a kind that no reader here knows."""

    kind = "unsupported"


class Refused(Failure):
    """The ladder ends here: no reader that the policy lets climb opens the file."""

    kind = "refused"


class TooMuch(Failure):
    """A bound of the reader itself was met."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.kind = f"limit:{limit}"


_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is the memory limit, seen from inside: torch says it in its own words."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def _on_cpu(storage: object) -> str:
    del storage
    return "cpu"


@dataclass
class Reading:
    """One file, as far as it has been read.

    `location` gives the tag that the file saved for a storage. `mapping` is (address, bytes) of the
    source in this process, or None where no storage points into it. `trusted_offsets` is False
    where code of the file ran: its tensors always go through the arena. `graph` is there when the
    reader already made the nodes; `arena` is its descriptor, if it has one.
    """

    container: str = ""
    reader: str = ""
    root: object = None
    graph: manifest.Graph | None = None
    arena: int | None = None
    attempts: list[manifest.Attempt] = field(default_factory=list)
    globals: list[str] = field(default_factory=list)
    calls: list[manifest.Call] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    location: Callable[[object], str] = _on_cpu
    mapping: tuple[int, int] | None = None
    trusted_offsets: bool = True

    def warn(self, message: str) -> None:
        """Say something in the report, once."""
        if message not in self.warnings and len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(message)

    def report(self) -> manifest.Reading:
        """The part that crosses to the parent. Its texts come from the file: they are made
        printable and short."""
        return manifest.Reading(
            reader=self.reader,
            container=self.container,
            attempts=[
                manifest.Attempt(
                    attempt.reader,
                    printable(attempt.error, 100),
                    printable(attempt.message, MAX_MESSAGE),
                    [printable(name, 300) for name in attempt.globals],
                )
                for attempt in self.attempts
            ],
            globals=[printable(name, 300) for name in self.globals],
            calls=[
                manifest.Call(printable(call.name, 300), printable(call.args, 300))
                for call in self.calls
            ],
            warnings=[printable(text, MAX_MESSAGE) for text in self.warnings],
        )
