"""A machine for pickle's opcodes that does nothing by itself: what a global, a call or a state
means is asked of the subclass.

It reads every protocol, keeps its memo in a dict (a C unpickler sizes an array by the largest
index), holds every length against the bytes that are there, and never recurses. It must never
import or call anything.
"""

from __future__ import annotations

import codecs
import struct
from abc import ABC, abstractmethod
from mmap import mmap
from typing import Any

_UINT64 = struct.Struct("<Q")
_HIGHEST_PROTOCOL = 5
_MAX_LINE = 1 << 20
"""Bytes in one line of a text opcode, but for STRING and UNICODE."""


def text_of(data: bytes) -> str:
    """A Python 2 string: UTF-8 as torch decodes it, or Latin-1, which keeps every byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class Stop(Exception):
    """STOP was read."""


class Machine(ABC):
    """The state of one pickle stream in `data`, read from `position`; `opcodes.run` drives it."""

    def __init__(self, data: bytes | mmap, position: int = 0) -> None:
        self.data = data
        self.size = len(data)
        self.position = position
        self.protocol = 0
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []

    @abstractmethod
    def find_global(self, module: str, name: str) -> object:
        """What a global stands for."""

    @abstractmethod
    def find_extension(self, code: int) -> object:
        """What a code of the extension registry stands for."""

    @abstractmethod
    def persistent_load(self, saved_id: object) -> object:
        """What a persistent id stands for."""

    @abstractmethod
    def call(self, function: object, args: object, kwargs: object = None) -> object:
        """REDUCE, INST, OBJ, NEWOBJ and NEWOBJ_EX."""

    @abstractmethod
    def build(self, target: object, state: object) -> object:
        """BUILD; gives what stands on the stack afterwards."""

    @abstractmethod
    def extend(self, target: object, items: list[Any]) -> None:
        """APPEND, APPENDS and ADDITEMS."""

    @abstractmethod
    def freeze(self, items: list[Any]) -> object:
        """FROZENSET."""

    @abstractmethod
    def set_items(self, target: object, flat: list[Any]) -> None:
        """SETITEM and SETITEMS: keys and values by turns."""

    def reset(self) -> None:
        """Ready for the next stream: each has a memo and a stack of its own."""
        self.memo = {}
        self.stack = []
        self.marks = []

    def take(self, count: int) -> bytes:
        """The next bytes of the stream."""
        end = self.position + count
        if end > self.size:
            self.position = self.size
            raise IndexError("past the end")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """The bytes up to the next newline."""
        end = self.data.find(b"\n", self.position, self.position + limit)
        if end < 0:
            self.position = self.size if self.position + limit >= self.size else self.position
            raise ValueError("a line has no end")
        taken = self.data[self.position : end]
        self.position = end + 1
        return taken

    def push(self, value: object) -> None:
        """One more value on the stack."""
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last MARK."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def discard(self) -> None:
        """POP_MARK."""
        self.pop_mark()

    # values

    def op_string(self) -> None:
        quoted = self.line(self.size).strip()
        if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
            raise ValueError("a string has no quotes")
        raw = codecs.escape_decode(quoted[1:-1])[0]
        self.stack.append(text_of(raw))

    def op_int(self) -> None:
        text = self.line()
        booleans = {b"00": False, b"01": True}
        self.stack.append(booleans[text] if text in booleans else int(text, 0))

    def op_long(self) -> None:
        text = self.line()
        self.stack.append(int(text[:-1] if text[-1:] == b"L" else text, 0))

    def op_buffer(self) -> None:
        raise ValueError("it refers to a buffer outside the file")

    # containers

    def op_mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def op_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def op_dict(self) -> None:
        flat = self.pop_mark()
        made: dict[Any, Any] = {}
        self.set_items(made, flat)
        self.stack.append(made)

    def op_append(self) -> None:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def op_appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def op_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def op_setitems(self) -> None:
        flat = self.pop_mark()
        self.set_items(self.stack[-1], flat)

    # the memo

    def op_memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_put(self, index: int) -> None:
        if index < 0:
            raise ValueError("a memo index is negative")
        self.memo[index] = self.stack[-1]

    # what a plain unpickler would import and call

    def op_global(self) -> None:
        module = self.line().decode("utf-8")
        self.stack.append(self.find_global(module, self.line().decode("utf-8")))

    def op_stack_global(self) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a global's name is no string")
        self.stack.append(self.find_global(module, name))

    def op_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def op_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args, kwargs)

    def op_inst(self) -> None:
        module = self.line().decode("utf-8")
        function = self.find_global(module, self.line().decode("utf-8"))
        args = tuple(self.pop_mark())
        self.stack.append(self.call(function, args))

    def op_obj(self) -> None:
        args = self.pop_mark()
        function = args.pop(0)
        self.stack.append(self.call(function, tuple(args)))

    def op_build(self) -> None:
        state = self.stack.pop()
        self.stack[-1] = self.build(self.stack[-1], state)

    def op_binpersid(self) -> None:
        self.stack[-1] = self.persistent_load(self.stack[-1])

    # the frame of the stream

    def op_proto(self) -> None:
        self.protocol = self.take(1)[0]
        if self.protocol > _HIGHEST_PROTOCOL:
            raise ValueError(f"protocol {self.protocol} is not known")

    def op_frame(self) -> None:
        length = _UINT64.unpack(self.take(8))[0]
        if length > self.size - self.position:
            self.position = self.size
            raise IndexError("a frame is longer than the file")

    def op_stop(self) -> None:
        if not self.stack:
            raise IndexError("the stack is empty")
        raise Stop

    def unknown(self) -> None:
        raise ValueError(f"byte {self.data[self.position - 1]:#04x} is no opcode")
