"""The opcodes of a pickle, held against those that torch's weights_only unpickler takes.

Nothing is unpickled here. `scan` walks the whole program once, with one regular expression that
matches thousands of opcodes at C speed, and stops at each opcode that needs a second look. What it
hands on is a program that the C unpickler executes exactly as torch's unpickler would execute the
original:

| opcode | torch's weights_only unpickler | the C unpickler | so here |
|---|---|---|---|
| NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE TUPLE1-3 EMPTY_TUPLE EMPTY_DICT | | the same | kept |
| BINGET LONG_BINGET, BINPUT | KeyError, IndexError where there is nothing | an error too | kept |
| LONG_BINPUT | the memo is a dict | the memo is an array of twice the index | kept, where the index is less than the bytes of the program allow |
| MARK TUPLE REDUCE BINPERSID STOP | a stack of stacks; arguments may be any iterable | one stack with a fence; arguments are a tuple | kept: what C takes, torch takes |
| SETITEM SETITEMS | dict, OrderedDict, Counter | anything with `__setitem__` | kept: nothing else on the stack has it (see EMPTY_LIST) |
| APPEND APPENDS | list | anything with `extend` or `append` | kept: nothing else on the stack has them |
| MARK APPENDS, MARK SETITEMS | the type is checked | nothing to do: not checked | handed over, but kept directly after APPENDS or SETITEMS: those have found the same object to be a list or a mapping |
| EMPTY_LIST | list | list, which takes SETITEM too | replaced by a list class without `__setitem__` |
| BUILD | by type: Tensor, Parameter, OrderedDict … | `__setstate__`, else `__dict__`; None is skipped | the state becomes a pair with a marker: only our OrderedDict's `__setstate__` takes it, and for all else a pair's second must be a dict |
| GLOBAL | a table of names, after Python 2's names are mapped | find_class | kept, where the name is in our part of torch's table |
| LONG1 SHORT_BINSTRING EMPTY_SET | | the same | kept |
| PROTO | read anywhere; warns unless 2 | anywhere | 2, at the start, once |
| NEWOBJ | classes of its table | any class | handed over |
| every other opcode | refused | executed | handed over |
"""  # noqa: E501 - rows of a table

from __future__ import annotations

import mmap
import re
import sys
from typing import NamedTuple

from .vocabulary import Vocabulary

MODULE = "isoload"
"""The module of the two globals that the rewritten program names. No table that a file's names are
looked up in has it."""

LIST = b"cisoload\nlist\n)R"
BUILD = b"cisoload\nbuild\n\x86b"
"""BUILD with `(state, the build marker)`."""

_PROTOCOL = b"\x80\x02"
_LONGEST = 127
_RUN = 400
"""Opcodes a match: bounds the memory of the regular expression's own stack."""

_GLOBAL = re.compile(rb"c([\w.]+)\n([\w.]+)\n")


class Program(NamedTuple):
    """A pickle that is safe to give to the C unpickler, and the globals that it names."""

    code: bytes
    globals: list[str]
    end: int
    """Where the original ends: the offset after its STOP."""


def _text(longest: int) -> str:
    lengths = "|".join(f"\\x{n:02x}\\0\\0\\0.{{{n}}}" for n in range(longest + 1))
    return f"X(?:{lengths})"


def _opcodes(high: str) -> re.Pattern[bytes]:
    """Runs of opcodes that are kept. `high`: the last two bytes of a LONG_BINPUT's index."""
    put = f"(?:r..{high}|q.)"
    number = "(?:K.|M..|J....)"
    shape = rf"(?:\)|{number}(?:\x85|{number}(?:\x86|{number}\x87)){put}|\((?:{number}){{4}}t{put})"
    storage = rf"\(h.h.{_text(16)}{put}h.{number}N?t{put}Q"
    rebuild_tensor = rf"h.\({storage}{number}{shape}{shape}[\x88\x89]h.\)R{put}t{put}R{put}"
    # "u(u" and "e(e": what ends a dict or list whose length is a multiple of the pickler's batch.
    bare = r"u\(u|e\(e|\((?![ue])|[)}Nt\x85-\x89QRsaeu]"
    one = rf"[Kqh].|r..{high}|{bare}|j....|M..|J....|G.{{8}}|{_text(_LONGEST)}"
    return re.compile(f"(?:{rebuild_tensor}|{one}){{0,{_RUN}}}".encode("latin-1"), re.DOTALL)


_RUNS = (
    (1 << 16, _opcodes(r"\0\0")),
    (1 << 20, _opcodes(r"[\0-\x0f]\0")),
    (sys.maxsize, _opcodes(r".\0")),
)
"""By the bytes of a program, which bound the memo indices that it needs."""


def scan(data: bytes | mmap.mmap, start: int, vocabulary: Vocabulary) -> Program | None:
    """The program at `start`, or None where torch should have a look at it itself."""
    if data[start : start + 2] != _PROTOCOL:
        return None
    run = next(opcodes.match for most, opcodes in _RUNS if len(data) < most)
    parts: list[bytes] = []
    names: dict[str, None] = {}
    copied = start
    at = start + 2
    while True:
        matched = run(data, at)
        if matched is not None and matched.end() > at:
            at = matched.end()
            continue
        opcode = data[at : at + 1]
        if opcode == b"]":
            parts += (data[copied:at], LIST)
            at = copied = at + 1
        elif opcode == b"b":
            parts += (data[copied:at], BUILD)
            at = copied = at + 1
        elif opcode == b"c":
            found = _GLOBAL.match(data, at)
            if found is None:
                return None
            name = vocabulary.full_name(found[1].decode(), found[2].decode())
            if name not in vocabulary.allowed:
                return None
            names[name] = None
            at = found.end()
        elif opcode == b".":
            parts.append(data[copied : at + 1])
            return Program(b"".join(parts), sorted(names), at + 1)
        else:
            length = _length(data, at, opcode)
            if not length or at + length > len(data):
                return None
            at += length


def _length(data: bytes | mmap.mmap, at: int, opcode: bytes) -> int:
    """The bytes of a rarer opcode and its argument, or 0 for an opcode that is not taken."""
    if opcode == b"X":
        return 5 + int.from_bytes(data[at + 1 : at + 5], "little")
    if opcode in (b"U", b"\x8a"):
        return 2 + (data[at + 1] if at + 1 < len(data) else 0)
    return 1 if opcode == b"\x8f" else 0
