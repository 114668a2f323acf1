"""The inert reader's fast way through what torch.save writes: a pickled module, for the most part.

The program runs in the C unpickler, which does nothing there but push values (`inert_scan` says
why); all that it does to objects is done by the inert machine's own methods, so that the graph and
the report are the machine's. Tensors and storages are not made.

What is odd in any way is None: the machine reads it from its start.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import _pickle
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import _weights_only_unpickler

from isoload import manifest

from . import inert_scan
from .context import Context
from .describe import describe
from .direct_zip import Archive
from .inert import InertUnpickler
from .makers.views import LEAN
from .persistent import storage_id
from .reading import Reading
from .stand_ins import Unusual, check_location
from .tags import Tags
from .torch_source import WorkerSource
from .views import Span, View
from .vocabulary import own_vocabulary
from .weights_only import refused_globals

_NOTHING: tuple[()] = ()
_OTHERS = ("model.json", "constants.pkl")
"""Records that tell a TorchScript archive."""


@dataclass(frozen=True)
class Inert:
    """What was read: its report, then what `describe` made of it, with its warnings.

    `refusal`: what torch's weights_only unpickler says of it, where that is known without running
    it."""

    reading: Reading
    graph: manifest.Graph
    arena: int | None
    told: list[str]
    refusal: Exception | None

    def report(self, reading: Reading) -> None:
        """The report, as it is when the object has been read."""
        reading.globals, reading.calls = self.reading.globals, self.reading.calls
        _warn(reading, self.reading.warnings)

    def finish(self, reading: Reading) -> None:
        """The graph in place of the object."""
        reading.graph, reading.arena = self.graph, self.arena
        _warn(reading, self.told)


def _warn(reading: Reading, messages: list[str]) -> None:
    for message in messages:
        reading.warn(message)


def read_inert(source: WorkerSource, request: manifest.Request) -> Inert | None:
    """Read a zip that weights_only refuses over a global, or return None for any other."""
    try:
        return _read(source, request)
    except Exception:  # whatever is odd about a file, the machine has the last word
        return None


def _read(source: WorkerSource, request: manifest.Request) -> Inert | None:
    archive = source.archive
    if archive is None or any(name.lower() in _OTHERS for name in archive.records):
        return None
    offset, size = archive.records["data.pkl"]
    pickled = bytes(source.view[offset : offset + size])
    program = inert_scan.scan(pickled)
    known = _weights_only_unpickler._get_allowed_globals()
    full_name = own_vocabulary().full_name
    if program is None or all(full_name(*name) in known for name in program.globals):
        return None
    if not archive.is_intact(source):
        return None
    reading = Reading(location=_location, mapping=source.mapping)
    spans = _Spans(archive, source.address)
    reading.root = execute(program.code, Context(reading, Tags()), spans)
    read, reading.warnings = reading.warnings, [*reading.warnings]
    graph, arena = describe(reading, tensors=request.tensors, budget=request)
    told, reading.warnings = reading.warnings, read
    return Inert(reading, graph, arena, told, _refusal(pickled))


def _location(span: Any) -> str:
    return str(span.location)


class _Owner(InertUnpickler):
    """The inert machine without its program: what the C unpickler hands over is done here."""

    makers = LEAN

    def call(self, function: object, args: object, kwargs: object = None) -> object:
        if args is _NOTHING and kwargs is None:
            # Most calls of a pickled module: what their makers would give.
            if function is OrderedDict:
                return OrderedDict()
            if function is set:
                return set()
        return super().call(function, args, kwargs)

    def build(self, target: object, state: object) -> object:
        if type(target) in (Span, View):
            raise Unusual
        return super().build(target, state)


def execute(code: bytes, context: Context, spans: Any) -> Any:
    """Run a rewritten program. `spans`: what a persistent id of the file stands for.

    Raises what the machine raises, and whatever the C unpickler has to say of it."""
    owner = _Owner(b"", context)
    owner.protocol = 2

    def extend(target: Any, items: Any) -> Any:
        owner.extend(target, items)
        return target

    def set_items(target: Any, flat: Any) -> Any:
        owner.set_items(target, flat)
        return target

    handlers: dict[object, Callable[[Any, Any], Any]] = {
        inert_scan.CALL: owner.call,
        inert_scan.BUILD: owner.build,
        inert_scan.EXTEND: extend,
        inert_scan.SET: set_items,
    }

    class Unpickler(_pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return owner.find_global(module, name)

        def persistent_load(self, pid: Any) -> Any:
            if len(pid) == 2:
                return spans(pid[0])
            target, operand, what = pid
            return handlers[what](target, operand)

    return Unpickler(io.BytesIO(code), encoding="utf-8").load()


class _Spans:
    """The storages of an archive: each a record, where it lies. As RecordStorages makes them."""

    def __init__(self, archive: Archive, base: int) -> None:
        self._records = archive.records
        self._base = base
        self._known: dict[str, Span] = {}

    def __call__(self, saved_id: object) -> Span:
        wanted = storage_id(saved_id)
        known = self._known.get(wanted.key)
        if known is not None:
            return known
        offset, nbytes = self._records["data/" + wanted.key]
        if nbytes != wanted.nbytes or offset % wanted.dtype.itemsize:
            raise Unusual
        check_location(wanted.location)
        span = Span(self._base + offset, nbytes, wanted.dtype, wanted.location)
        if nbytes:  # one that has no address is not remembered: each is its own
            self._known[wanted.key] = span
        return span


def _refusal(pickled: bytes) -> Exception | None:
    """What torch says of the first global that it refuses, where nothing before can have gone
    wrong: it is given that global alone."""
    for module, name in inert_scan.first_globals(pickled):
        program = f"\x80\x02c{module}\n{name}\n.".encode("latin-1")
        try:
            _weights_only_unpickler.Unpickler(io.BytesIO(program), encoding="utf-8").load()
        except Exception as error:
            # Without its frames: they hold the mapping, in a cycle.
            return error.with_traceback(None) if refused_globals(error) else None
    return None
