"""The ladder of readers: each rung is tried as far as the policy lets it climb, and each refusal is
kept.

weights_only → inert → full. The inert reader runs no code, so it is also asked why a file was
refused where the policy stops before it: a damaged file is told apart from a refused one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch._weights_only_unpickler import _get_allowed_globals

from isoload import manifest

from .archive import first_line
from .reading import (
    FULL,
    INERT,
    WEIGHTS_ONLY,
    Damaged,
    Reading,
    Refused,
    TooMuch,
    Unsupported,
    is_out_of_memory,
)
from .weights_only import refusal, refused_globals


class Rung(NamedTuple):
    """A reader: its name, and the call that returns the object or raises."""

    reader: str
    read: Callable[[], object]


def climb(reading: Reading, request: manifest.Request, *rungs: Rung) -> None:
    """Fill `reading` by the first reader that opens the file; raise a Failure where none may."""
    if rungs[0].reader != WEIGHTS_ONLY:
        refused = f"it opens no file of the kind {reading.container}"
        reading.attempts.append(manifest.Attempt(WEIGHTS_ONLY, "Unsupported", refused))
    starved: BaseException | None = None
    for rung in rungs:
        if rung.reader == FULL and request.fallback != "full":
            continue
        try:
            root = rung.read()
        except BaseException as error:
            _note(reading, rung.reader, error)
            if _is_final(rung, error):
                raise
            if is_out_of_memory(error):
                starved = error
            continue
        if rung.reader == INERT and not _may_be_inert(reading, request):
            raise starved or Refused(_why_refused(reading))
        reading.root = root
        reading.reader = rung.reader
        return
    last = reading.attempts[-1]
    raise Refused(f"no reader opens it; {last.reader}: {last.message}")


def _is_final(rung: Rung, error: BaseException) -> bool:
    """Whether no later reader can do better. weights_only believes any size that a file claims, and
    may run out of memory over a file that is only damaged: the inert reader tells them apart.
    """
    if rung.reader == WEIGHTS_ONLY:
        return isinstance(error, TooMuch)
    return isinstance(error, (Damaged, Unsupported, TooMuch)) or is_out_of_memory(error)


def _note(reading: Reading, reader: str, error: BaseException) -> None:
    message = refusal(error) if reader == WEIGHTS_ONLY else first_line(error)
    stumbled = refused_globals(error) if reader == WEIGHTS_ONLY else reading.globals[-1:]
    reading.attempts.append(manifest.Attempt(reader, type(error).__name__, message, stumbled))


def _may_be_inert(reading: Reading, request: manifest.Request) -> bool:
    if request.fallback != "none":
        return True
    allowed = set(request.safe_globals)
    if not allowed or not reading.attempts[0].globals:
        return False  # weights_only refused it for another reason than a class
    return all(name in allowed or name in _get_allowed_globals() for name in reading.globals)


def _why_refused(reading: Reading) -> str:
    reason = reading.attempts[0].message
    return f"the policy allows no reader after weights_only, which refused: {reason}"
