"""What all pickles of one file share: the report, the tags, and what each global stands for."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from isoload import manifest

from .brief import brief
from .reading import MAX_CALLS, MAX_GLOBALS, Reading

if TYPE_CHECKING:
    from .tags import Tags

_CALLS_A_NAME = 20


class Context:
    """One file, through all of its pickles: the report, the tags of the storages that are made, and
    what each global's name stands for.
    """

    tags: Tags

    def __init__(self, reading: Reading, tags: Tags | None = None, depth: int = 0) -> None:
        self.reading = reading
        if tags is not None:
            self.tags = tags
        self.depth = depth
        self.references: dict[str, object] = {}
        self._globals: set[str] = set()
        self._calls: set[tuple[str, str]] = set()
        self._asked: collections.Counter[str] = collections.Counter()

    def note_global(self, name: str) -> None:
        if name not in self._globals and len(self._globals) < MAX_GLOBALS:
            self._globals.add(name)
            self.reading.globals.append(name)

    def note_call(self, name: str, args: object, kwargs: object) -> None:
        """Each call once, and no name without end."""
        self._asked[name] += 1
        if self._asked[name] > _CALLS_A_NAME or len(self._calls) >= MAX_CALLS:
            return
        text = brief(args, kwargs)
        if (name, text) not in self._calls:
            self._calls.add((name, text))
            self.reading.calls.append(manifest.Call(name, text))
