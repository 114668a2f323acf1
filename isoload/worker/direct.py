"""The fast way through an ordinary checkpoint: from its pickle straight to manifest nodes.

torch.load(weights_only=True) spends most of its time on a tensor in a Python opcode loop, and in
making a storage and a tensor that the worker would only take apart again. Here neither is made.
What is read counts as read by `weights_only`, so this accepts a part of what torch accepts and
gives exactly what torch gives; for anything else `read_direct` returns False, and torch itself has
a look. Torch need not be there.

    direct_zip      where each record lies, and that the zip says so in one way only
    direct_scan     the pickle's opcodes against torch's
    direct_graph    the C unpickler, with inert stand-ins
    direct_nodes    what it made → nodes
    direct_legacy   the format from before torch 1.6

Nothing here raises for a file: an error is a False.
"""

from __future__ import annotations

from isoload import manifest

from .direct_graph import execute
from .direct_legacy import MAGIC, read_legacy
from .direct_nodes import describe
from .direct_scan import scan
from .direct_zip import Stored
from .reading import WEIGHTS_ONLY, Reading
from .source import Source
from .vocabulary import Vocabulary


def read_direct(
    source: Source, request: manifest.Request, vocabulary: Vocabulary, reading: Reading
) -> bool:
    """Read an ordinary checkpoint into `reading`, whose arena is the caller's then; or return
    False: for torch.load to read."""
    try:
        if source.data[: len(MAGIC)] == MAGIC:
            read_legacy(source, request, vocabulary, reading)
        elif not _read_zip(source, request, vocabulary, reading):
            return False
    except Exception:  # whatever is odd about a file, torch's own reader has the last word
        return False
    reading.reader = WEIGHTS_ONLY
    return True


def _read_zip(
    source: Source, request: manifest.Request, vocabulary: Vocabulary, reading: Reading
) -> bool:
    archive = source.archive
    if archive is None:
        return False
    offset, size = archive.records["data.pkl"]
    program = scan(bytes(source.view[offset : offset + size]), 0, vocabulary)
    if program is None:
        return False
    storages = Stored(archive.records, crosses=request.tensors)
    root, nodes = describe(execute(program.code, storages, vocabulary), request.max_nodes)
    if not archive.is_intact(source):
        return False
    reading.container = "zip"
    reading.globals = program.globals
    reading.graph = manifest.Graph(root, nodes, storages.table)
    return True
