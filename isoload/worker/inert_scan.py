"""A pickle's program, rewritten so that the C unpickler runs it and touches no object.

Nothing is unpickled here. What is left to the C unpickler are values, tuples, marks and the memo;
whatever does something to an object, or asks for one, becomes a persistent id: a tuple that ends in
a number, which says what to do. Our own `persistent_load` is given it, and asks the inert machine.

| opcode | the inert machine | the C unpickler | so here |
|---|---|---|---|
| NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE LONG1 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET TUPLE1-3 | | the same | kept |
| SHORT_BINSTRING | UTF-8, else Latin-1 | UTF-8, else an error | kept |
| MARK TUPLE STOP | a stack of stacks | one stack with a fence | kept: what C takes, the machine takes |
| BINGET LONG_BINGET BINPUT | an error where there is nothing | an error too | kept |
| LONG_BINPUT | the memo is a dict | the memo is an array of twice the index | kept, where the bytes of the program allow the index |
| GLOBAL | find_global | find_class, which is ours | kept |
| REDUCE NEWOBJ | call | calls | handed over |
| BUILD | build | sets attributes, calls `__setstate__` | handed over |
| APPEND APPENDS | extend | calls `append`, `extend` | handed over |
| SETITEM SETITEMS | set_items | `__setitem__` | handed over |
| BINPERSID | persistent_load | our persistent_load | handed over |
| PROTO | read anywhere | anywhere | 2, at the start, once |
| every other opcode | | | the program is left to the machine |
"""  # noqa: E501 - rows of a table

from __future__ import annotations

import re
from typing import NamedTuple

CALL, BUILD, EXTEND, SET = range(4)
"""What a persistent id of the rewritten program asks for: (object, operand, one of these). A pair
holds a persistent id of the file itself."""

_PROTOCOL = b"\x80\x02"
_LONGEST = 127
_RUN = 200
"""Opcodes a match: bounds the memory of the regular expression's own stack."""
_MAX_GLOBALS = 1_000


def _ask(what: int, pack: bytes = b"") -> bytes:
    """`pack`: the opcode that makes one operand of what stands above the object."""
    return pack + b"K%c\x87Q" % what


_HANDED = {
    b"Q": b"N\x86Q",
    b"R": _ask(CALL),
    b"\x81": _ask(CALL),
    b"b": _ask(BUILD),
    b"a": _ask(EXTEND, b"\x85"),
    b"e": _ask(EXTEND, b"t"),
    b"s": _ask(SET, b"\x86"),
    b"u": _ask(SET, b"t"),
    b"": b"",
}


class Global(NamedTuple):
    """What the original asks for at the offset `start`."""

    start: int
    module: str
    name: str


class Program(NamedTuple):
    """What to give to the C unpickler, and the globals that it asks for."""

    code: bytes
    globals: list[Global]


class _Grammar(NamedTuple):
    """`run`: as many opcodes as follow each other. `split`: those that are kept, or one that is
    handed over."""

    run: re.Pattern[bytes]
    split: re.Pattern[bytes]


def _text() -> str:
    lengths = "|".join(f"\\x{n:02x}\\0\\0\\0.{{{n}}}" for n in range(_LONGEST + 1))
    return f"X(?:{lengths})"


_VALUES = rf"[Kh].|[N\x88\x89)\]}}(t\x85-\x87\x8f]|q.|M..|[jJ]....|G.{{8}}|{_text()}"
_NAMED = re.compile(rb"c([\w.]+)\n([\w.]+)\n")


def _compiled(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode("latin-1"), re.DOTALL)


def _grammar(high: str) -> _Grammar:
    """`high`: the last two bytes of a LONG_BINPUT's index."""
    kept = rf"{_VALUES}|r..{high}"
    handed = r"[QR\x81baesu]"
    return _Grammar(
        _compiled(rf"(?:{kept}|{handed}){{0,{_RUN}}}"),
        _compiled(rf"((?:{kept}){{0,{_RUN}}})({handed}|\Z)"),
    )


_GRAMMARS = (
    (1 << 16, _grammar(r"\0\0")),
    (1 << 20, _grammar(r"[\0-\x0f]\0")),
    (1 << 22, _grammar(r"[\0-\x3f]\0")),
    (1 << 24, _grammar(r".\0")),
)
"""By the bytes of a program, which bound the memo indices that it needs: 16 bytes of memory each. A
longer program is left to the machine."""


def scan(data: bytes) -> Program | None:
    """The whole program, or None where the machine should run it itself."""
    if not data.startswith(_PROTOCOL):
        return None
    fitting = [grammar for most, grammar in _GRAMMARS if len(data) < most]
    if not fitting:
        return None
    run, split = fitting[0]
    parts = [_PROTOCOL]
    names: list[Global] = []
    at = len(_PROTOCOL)
    while True:
        matched = run.match(data, at)
        if matched is not None and matched.end() > at:
            parts.append(_rewritten(split, data, at, matched.end()))
            at = matched.end()
            continue
        opcode = data[at : at + 1]
        if opcode == b".":
            parts.append(opcode)
            return Program(b"".join(parts), names) if at + 1 == len(data) else None
        length = _named(data, at, names) if opcode == b"c" else _length(data, at, opcode)
        if not length or at + length > len(data):
            return None
        parts.append(data[at : at + length])
        at += length


def _rewritten(split: re.Pattern[bytes], data: bytes, start: int, end: int) -> bytes:
    """The opcodes from `start` to `end`, with those replaced that are handed over."""
    pairs = split.findall(data, start, end)
    return b"".join([kept + _HANDED[handed] for kept, handed in pairs])


def _named(data: bytes, at: int, names: list[Global]) -> int:
    """The length of a GLOBAL, whose name is noted, or 0."""
    found = _NAMED.match(data, at)
    if found is None or len(names) >= _MAX_GLOBALS:
        return 0
    names.append(Global(at, found[1].decode(), found[2].decode()))
    return found.end() - at


def _length(data: bytes, at: int, opcode: bytes) -> int:
    """The bytes of a rarer opcode and its argument, or 0 for an opcode that is not taken."""
    if opcode == b"X":
        return 5 + int.from_bytes(data[at + 1 : at + 5], "little")
    if opcode in (b"U", b"\x8a"):
        return 2 + (data[at + 1] if at + 1 < len(data) else 0)
    return 0
