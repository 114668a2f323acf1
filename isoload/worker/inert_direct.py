"""The inert reader's fast way through what torch.save writes: a pickled module, for the most part.

The program runs in the C unpickler, which does nothing there but push values (`inert_scan` says
why); all that it does to objects is done by the inert machine's own methods, so that the graph and
the report are the machine's. Tensors and storages are not made, and torch need not be there.

What is odd in any way is left: a worker with torch reads it from its start.
"""

from __future__ import annotations

import _pickle
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from isoload import manifest
from isoload.torch_facts import Facts

from . import inert_scan
from .context import Context
from .describe_views import describe_views
from .direct_graph import execute as execute_directly
from .direct_nodes import describe as describe_directly
from .direct_scan import scan as scan_directly
from .direct_zip import Archive, Stored
from .inert_machine import InertMachine
from .makers.base import Maker
from .makers.views import lean_makers
from .names import Names, light_names
from .reading import INERT, WEIGHTS_ONLY, Reading
from .source import Source
from .stand_ins import Kind, Named, Unusual, check_location
from .views import Span, View
from .vocabulary import UNTYPED, Vocabulary

_NOTHING: tuple[()] = ()
_LARGEST = 1 << 50
"""Elements of a storage: more than any has."""
_OTHERS = ("model.json", "constants.pkl")
"""Records that tell a TorchScript archive."""
_OTHER_WORDS = ("torch.nested.", "torch._dynamo.", "torch.distributed.")
"""Of some of these names, which it does not allow, torch says something else than that."""


class Lexicon:
    """All that the reader knows of torch."""

    def __init__(self, facts: Facts, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.allowed = facts.allowed
        self.blocked = facts.blocked
        self.names: Names = light_names(facts)
        self.makers: dict[str, Maker] = lean_makers(facts.storages)
        self.storages = {
            name: vocabulary.kinds[dtype]
            for name, dtype in facts.storages.items()
            if dtype in vocabulary.kinds
        }


def read_inert(
    source: Source, request: manifest.Request, lexicon: Lexicon, reading: Reading
) -> bool:
    """Read a zip that weights_only refuses over a global into `reading`, whose arena is the
    caller's then; or return False for any other."""
    try:
        return _read(source, request, lexicon, reading)
    except Exception:  # whatever is odd about a file, the machine has the last word
        return False


def _read(source: Source, request: manifest.Request, lexicon: Lexicon, reading: Reading) -> bool:
    archive = source.archive
    if archive is None or any(name.lower() in _OTHERS for name in archive.records):
        return False
    offset, size = archive.records["data.pkl"]
    pickled = bytes(source.view[offset : offset + size])
    program = inert_scan.scan(pickled)
    refused = program and _refused(program, lexicon)
    if program is None or refused is None:
        return False
    _check_before(pickled[: refused.start], archive, lexicon.vocabulary)
    if not archive.is_intact(source):
        return False
    made = Reading(location=_location, mapping=source.mapping)
    spans = _Spans(archive, source.address, lexicon)
    made.root = execute(program.code, Context(made), spans, lexicon)
    graph, arena = describe_views(made, request, lexicon.names)
    message = f"{refused.name} is not among the globals that it allows"
    attempt = manifest.Attempt(WEIGHTS_ONLY, "UnpicklingError", message, [refused.name])
    reading.container, reading.reader, reading.attempts = "zip", INERT, [attempt]
    reading.globals, reading.calls, reading.warnings = made.globals, made.calls, made.warnings
    reading.graph, reading.arena = graph, arena
    return True


def _refused(program: inert_scan.Program, lexicon: Lexicon) -> inert_scan.Global | None:
    """The first global that torch's weights_only unpickler refuses, under the name that it says."""
    for found in program.globals:
        module, name = lexicon.vocabulary.mapped(found.module, found.name)
        name = f"{module}.{name}"
        if name in lexicon.allowed:
            continue
        if module in lexicon.blocked or name.startswith(_OTHER_WORDS):
            raise Unusual
        if name.startswith("builtins"):
            if not name.startswith("builtins."):
                raise Unusual
            name = name.removeprefix("builtins.")
        return inert_scan.Global(found.start, found.module, name)
    return None


def _check_before(pickled: bytes, archive: Archive, vocabulary: Vocabulary) -> None:
    """Raises Unusual unless torch comes as far as the global that it refuses: what is before it is
    read directly, as a program that gives None at its end."""
    program = scan_directly(pickled + b"N.", 0, vocabulary)
    if program is None:
        raise Unusual
    made = execute_directly(program.code, Stored(archive.records, crosses=True), vocabulary)
    describe_directly(made, manifest.MAX_NODES)


def _location(span: Any) -> str:
    return str(span.location)


class _Owner(InertMachine):
    """The inert machine without its program: what the C unpickler hands over is done here."""

    def __init__(self, context: Context, lexicon: Lexicon) -> None:
        super().__init__(b"", context)
        self.protocol = 2
        self.names = lexicon.names
        self.makers = lexicon.makers
        self.kinds: dict[str, Kind] = lexicon.vocabulary.kinds

    def call(self, function: object, args: object, kwargs: object = None) -> object:
        if args is _NOTHING and kwargs is None:
            # Most calls of a pickled module: what their makers would give.
            if function is OrderedDict:
                return OrderedDict()
            if function is set:
                return set()
        elif type(args) is tuple and any(map(_is_global, args)):
            raise Unusual  # a constructor may ask whether it is a class
        return super().call(function, args, kwargs)

    def build(self, target: object, state: object) -> object:
        if type(target) in (Span, View, Named):
            raise Unusual
        return super().build(target, state)

    def persistent_load(self, saved_id: object) -> object:
        raise Unusual

    def nested(self, data: bytes) -> object:
        raise Unusual

    def note_device(self, tensor: Any, device: str) -> None:
        raise Unusual


def _is_global(value: object) -> bool:
    return type(value) is Named and value.kind == "global"


def execute(code: bytes, context: Context, spans: Any, lexicon: Lexicon) -> Any:
    """Run a rewritten program. `spans`: what a persistent id of the file stands for.

    Raises what the machine raises, and whatever the C unpickler has to say of it."""
    owner = _Owner(context, lexicon)

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
    """The storages of an archive: each a record, where it lies."""

    def __init__(self, archive: Archive, base: int, lexicon: Lexicon) -> None:
        self._records = archive.records
        self._base = base
        self._kinds = lexicon.storages
        self._known: dict[str, Span] = {}

    def __call__(self, saved_id: object) -> Span:
        if type(saved_id) is not tuple or len(saved_id) != 5:
            raise Unusual
        word, named, key, location, count = saved_id
        if word != "storage" or type(key) is not str or type(location) is not str:
            raise Unusual
        kind = self._kind(named)  # also of a storage that is known: the machine would look, too
        if type(count) is not int or not 0 <= count <= _LARGEST:
            raise Unusual
        known = self._known.get(key)
        if known is not None:
            return known
        offset, nbytes = self._records["data/" + key]
        if nbytes != count * kind.itemsize or offset % kind.itemsize:
            raise Unusual
        check_location(location)
        span = Span(self._base + offset, nbytes, kind, location)
        if nbytes:  # one that has no address is not remembered: each is its own
            self._known[key] = span
        return span

    def _kind(self, named: object) -> Kind:
        if type(named) is not Named:
            raise Unusual
        if named.kind == "storage_type":
            return self._kinds[named.name]
        if named != Named("global", "torch.storage.UntypedStorage", named.shown):
            raise Unusual
        return UNTYPED
