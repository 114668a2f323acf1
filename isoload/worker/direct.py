"""The fast way through an ordinary checkpoint: from its pickle straight to manifest nodes.

torch.load(weights_only=True) spends most of its time on a tensor in a Python opcode loop, and in
making a storage and a tensor that the worker would only take apart again. Here neither is made.
What is read counts as read by `weights_only`, so this accepts a part of what torch accepts and
gives exactly what torch gives; for anything else `read_direct` returns None, and torch itself has a
look.

    direct_zip      where each record lies, and that the zip says so in one way only
    direct_scan     the pickle's opcodes against torch's
    direct_graph    the C unpickler, with inert stand-ins
    direct_nodes    what it made → nodes
    direct_legacy   the format from before torch 1.6

Nothing here raises for a file: an error is a None.
"""

from __future__ import annotations

from dataclasses import dataclass

from isoload import manifest

from .direct_graph import execute
from .direct_legacy import MAGIC, read_legacy
from .direct_nodes import describe
from .direct_scan import scan
from .direct_zip import Stored
from .source import Source
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Direct:
    """A graph whose storages lie in the source as they are, or in the arena: a sealed memfd that
    the caller owns. `globals`: the names in its pickle."""

    graph: manifest.Graph
    container: str
    globals: list[str]
    arena: int | None = None


def read_direct(source: Source, request: manifest.Request, vocabulary: Vocabulary) -> Direct | None:
    """Read an ordinary checkpoint, or return None: for torch.load to read."""
    try:
        if source.data[: len(MAGIC)] == MAGIC:
            return Direct(*read_legacy(source, request, vocabulary))
        return _read_zip(source, request, vocabulary)
    except Exception:  # whatever is odd about a file, torch's own reader has the last word
        return None


def _read_zip(source: Source, request: manifest.Request, vocabulary: Vocabulary) -> Direct | None:
    archive = source.archive
    if archive is None:
        return None
    offset, size = archive.records["data.pkl"]
    program = scan(bytes(source.view[offset : offset + size]), 0, vocabulary)
    if program is None:
        return None
    storages = Stored(archive.records, crosses=request.tensors)
    root, nodes = describe(execute(program.code, storages, vocabulary), request.max_nodes)
    if not archive.is_intact(source):
        return None
    return Direct(manifest.Graph(root, nodes, storages.table), "zip", program.globals)
