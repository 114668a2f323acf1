"""A hostile opcode stream costs no memory, no recursion and no state outside its own records."""

from __future__ import annotations

import contextlib
import pickle
import resource
import struct

import pytest

from isoload.worker.reading import Damaged, Failure
from isoload.worker.recorded import Recorded

from .files import unpickle


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x05\x96\x00\x00\x00\x00\xff\x00\x00\x00.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x03B\xff\xff\xff\xff.",
    ],
    ids=["memo index", "bytes", "bytearray", "str", "long", "frame", "binbytes"],
)
def test_a_huge_length_allocates_nothing(stream: bytes) -> None:
    before = _peak()
    with contextlib.suppress(Damaged):
        unpickle(stream)
    assert _peak() - before < 64 << 20


@pytest.mark.parametrize(
    "stream",
    [
        *(b".", b"\x80\x04.", b"\x80\x09N.", b"R.", b"(.", b"\x80\x02}K\x01s.", b"\x80\x02h\x07."),
        *(b"\x80\x05\x97.", b"\x80\x05N\x98.", b"\xff", b"\x80\x02K\x01K\x02\x86R.", b"0.", b"1."),
        *(
            b"I1e5\n.",
            b"\x80\x02]]\x85e.",
            b"\x80\x04N\x8c\x01a\x93.",
            b"\x80\x02\x8b\xff\xff\xff\xff.",
        ),
        *(
            b"\x80\x02N(K\x01u.",
            b"\x80\x02K\x05K\x06a.",
            b"S'abc\n.",
            b"\x80\x02cos\nsystem\nN\x81.",
        ),
        *(
            b"\x80\x02P1\n.",
            b"\x80\x02K\x01Q.",
            b"\x80\x02}]K\x01s.",
            b"c" + b"a" * 2000 + b"\nb\n.",
        ),
    ],
)
def test_a_stream_that_breaks_is_damaged(stream: bytes) -> None:
    with pytest.raises(Failure):
        unpickle(stream)


@pytest.mark.parametrize("opcode", [b"\x82\x05", b"\x83\x05\x00", b"\x84\x05\x00\x00\x00"])
def test_an_extension_code_is_only_a_name(opcode: bytes) -> None:
    made, _ = unpickle(b"\x80\x02" + opcode + b".")
    assert made.name == "copyreg.extension_5"


def test_deep_nesting_does_not_recurse() -> None:
    made, _ = unpickle(b"\x80\x04]" + b"\x85" * 300_000 + b".")
    assert type(made) is tuple


def test_a_key_nested_too_deep_to_hash_is_refused() -> None:
    with pytest.raises(Failure, match="nested too deep"):
        unpickle(b"\x80\x04})" + b"\x85" * 100_000 + b"K\x01s.")


def test_arithmetic_on_huge_numbers_is_left_alone() -> None:
    number = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x55" * (1 << 20)
    made, _ = unpickle(b"\x80\x02cfractions\nFraction\n" + number + number + b"\x86R.")
    assert made.name == "fractions.Fraction"


def test_a_graph_that_explodes_as_a_tree_stays_small() -> None:
    doubling = b"".join(b"\x80\x02]" if i == 0 else b"2\x86" for i in range(200))
    made, _ = unpickle(doubling + b".")
    assert made[0] is made[1]


def test_state_for_a_class_changes_nothing_but_the_report() -> None:
    made, reading = unpickle(b"\x80\x02cos\nenviron\nq\x00}U\x05itemsK\x01sb0h\x00.")
    assert isinstance(made, Recorded)
    assert made.reference
    assert made.state is None
    assert reading.calls[0].name == "os.environ.__setstate__"


def test_items_cannot_be_put_into_a_class() -> None:
    with pytest.raises(Damaged):
        unpickle(b"\x80\x02cos\nenviron\nU\x01aK\x01s.")


@pytest.mark.parametrize("form", ["reduce", "inst", "obj", "newobj", "newobj_ex", "stack_global"])
def test_every_form_of_a_call_is_recorded_and_reported(form: str) -> None:
    stream = {
        "reduce": b"cposix\nsystem\n(U\x02idtR.",
        "inst": b"(U\x02idiposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nU\x02ido.",
        "newobj": b"\x80\x02cposix\nsystem\nU\x02id\x85\x81.",
        "newobj_ex": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85}\x92.",
        "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
    }[form]
    made, reading = unpickle(stream)
    assert (made.name, made.args) == ("posix.system", ("id",))
    assert [(call.name, call.args) for call in reading.calls] == [("posix.system", "'id'")]
    assert reading.globals == ["posix.system"]


def test_the_report_of_calls_is_bounded_and_short() -> None:
    calls = b"".join(
        b"cos\nsystem\nX" + struct.pack("<I", 5000) + b"%05d" % i + b"x" * 4995 + b"\x85R0"
        for i in range(3000)
    )
    _, reading = unpickle(b"\x80\x02" + calls + b"N.")
    assert 1 <= len(reading.calls) <= 1000
    assert max(len(call.args) for call in reading.calls) <= 300


def test_a_cycle_through_a_record_comes_back() -> None:
    made, _ = unpickle(b"\x80\x02ca\nB\n)\x81q\x00}U\x04selfh\x00sb.")
    assert made.state["self"] is made


def test_python_2_strings_keep_every_byte() -> None:
    made, _ = unpickle(b"\x80\x02U\x03\xe9\xff\x00U\x02\xc3\xa9\x86.")
    assert made == ("\xe9\xff\x00", "é")


def test_values_shared_in_the_file_are_shared() -> None:
    inner = [1]
    made, _ = unpickle(pickle.dumps([inner, inner, (inner,)]))
    assert made[0] is made[1] is made[2][0]
