"""Pickle's opcodes, each with what it does to a machine, and the loop that runs them.

The table knows every opcode of protocols 0 to 5. What an opcode means beyond the stack is the
machine's.
"""

from __future__ import annotations

import struct
from codecs import raw_unicode_escape_decode
from collections.abc import Callable
from pickle import decode_long
from typing import Any

from .machine import Machine, Stop, text_of
from .reading import Damaged, Failure

Handler = Callable[[Machine], None]

_INT32 = struct.Struct("<i")
_UINT8 = struct.Struct("<B")
_UINT16 = struct.Struct("<H")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_FLOAT = struct.Struct(">d")

_BREAKS = (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error)


def run(machine: Machine) -> Any:
    """The next object of the machine's stream; its `position` is then behind that object's STOP."""
    machine.reset()
    handlers = _HANDLERS
    data = machine.data
    start = machine.position
    try:
        while True:
            code = data[machine.position]
            machine.position += 1
            handlers[code](machine)
    except Stop:
        return machine.stack.pop()
    except Failure:
        raise
    except _BREAKS as error:
        if machine.position >= machine.size:
            raise Damaged(
                f"the pickle that starts at byte {start} is cut off at byte {machine.size}"
            ) from None
        raise Damaged(
            f"the pickle breaks before byte {machine.position}: {_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "its stack is empty"
    if isinstance(error, KeyError):
        return f"its memo has nothing at {str(error)[:40]}"
    return str(error)[:200]


def _sized(convert: Callable[[bytes], object], width: struct.Struct) -> Handler:
    """An opcode whose length stands before its data."""

    def handler(machine: Machine) -> None:
        length = width.unpack(machine.take(width.size))[0]
        if length < 0:
            raise ValueError("a length is negative")
        machine.stack.append(convert(machine.take(length)))

    return handler


def _fixed(number: struct.Struct) -> Handler:
    return lambda machine: machine.stack.append(number.unpack(machine.take(number.size))[0])


def _constant(make: Callable[[], object]) -> Handler:
    return lambda machine: machine.stack.append(make())


def _unicode(data: bytes) -> str:
    return str(data, "utf-8", "surrogatepass")


_OPCODES: dict[bytes, Handler] = {
    b"I": Machine.op_int,
    b"L": Machine.op_long,
    b"F": lambda machine: machine.push(float(machine.line())),
    b"S": Machine.op_string,
    b"V": lambda machine: machine.push(raw_unicode_escape_decode(machine.line(machine.size))[0]),
    b"J": _fixed(_INT32),
    b"K": _fixed(_UINT8),
    b"M": _fixed(_UINT16),
    b"G": _fixed(_FLOAT),
    b"\x8a": _sized(decode_long, _UINT8),
    b"\x8b": _sized(decode_long, _INT32),
    b"U": _sized(text_of, _UINT8),
    b"T": _sized(text_of, _INT32),
    b"C": _sized(bytes, _UINT8),
    b"B": _sized(bytes, _UINT32),
    b"\x8e": _sized(bytes, _UINT64),
    b"\x8c": _sized(_unicode, _UINT8),
    b"X": _sized(_unicode, _UINT32),
    b"\x8d": _sized(_unicode, _UINT64),
    b"\x96": _sized(bytearray, _UINT64),
    b"\x97": Machine.op_buffer,
    b"\x98": Machine.op_buffer,
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b")": lambda machine: machine.push(()),
    b"]": _constant(list),
    b"}": _constant(dict),
    b"\x8f": _constant(set),
    b"(": Machine.op_mark,
    b"0": Machine.op_pop,
    b"1": Machine.discard,
    b"2": lambda machine: machine.push(machine.stack[-1]),
    b"\x85": lambda machine: machine.op_tuple(1),
    b"\x86": lambda machine: machine.op_tuple(2),
    b"\x87": lambda machine: machine.op_tuple(3),
    b"t": lambda machine: machine.push(tuple(machine.pop_mark())),
    b"l": lambda machine: machine.push(machine.pop_mark()),
    b"d": Machine.op_dict,
    b"\x91": lambda machine: machine.push(machine.freeze(machine.pop_mark())),
    b"a": Machine.op_append,
    b"e": Machine.op_appends,
    b"\x90": Machine.op_appends,
    b"s": Machine.op_setitem,
    b"u": Machine.op_setitems,
    b"g": lambda machine: machine.push(machine.memo[int(machine.line())]),
    b"h": lambda machine: machine.push(machine.memo[machine.take(1)[0]]),
    b"j": lambda machine: machine.push(machine.memo[_UINT32.unpack(machine.take(4))[0]]),
    b"p": lambda machine: machine.op_put(int(machine.line())),
    b"q": lambda machine: machine.op_put(machine.take(1)[0]),
    b"r": lambda machine: machine.op_put(_UINT32.unpack(machine.take(4))[0]),
    b"\x94": Machine.op_memoize,
    b"c": Machine.op_global,
    b"\x93": Machine.op_stack_global,
    b"\x82": lambda machine: machine.push(machine.find_extension(machine.take(1)[0])),
    b"\x83": lambda machine: machine.push(
        machine.find_extension(_UINT16.unpack(machine.take(2))[0])
    ),
    b"\x84": lambda machine: machine.push(
        machine.find_extension(_INT32.unpack(machine.take(4))[0])
    ),
    b"R": Machine.op_reduce,
    b"\x81": Machine.op_reduce,
    b"\x92": Machine.op_newobj_ex,
    b"i": Machine.op_inst,
    b"o": Machine.op_obj,
    b"b": Machine.op_build,
    b"P": lambda machine: machine.push(machine.persistent_load(machine.line().decode("utf-8"))),
    b"Q": Machine.op_binpersid,
    b"\x80": Machine.op_proto,
    b"\x95": Machine.op_frame,
    b".": Machine.op_stop,
}

_HANDLERS: list[Handler] = [_OPCODES.get(bytes([code]), Machine.unknown) for code in range(256)]
