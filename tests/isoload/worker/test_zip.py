"""A zip record is never silently another than torch would give, or than was saved."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import pytest
import torch

from isoload import manifest
from isoload.worker import readers
from isoload.worker.archive import ZipArchive
from isoload.worker.reading import Reading

from .files import failure, read, rezipped, root, saved, source_of

VALUES = torch.arange(6.0)
DATA = saved({"a": VALUES})


def _with(name: str, change: Any) -> bytes:
    def write(new: zipfile.ZipFile, record: str, held: bytes) -> None:
        new.writestr(record, change(held) if record.endswith(name) else held)

    return rezipped(DATA, write)


def test_a_flipped_data_byte_is_said() -> None:
    at = DATA.index(struct.pack("<6f", *range(6)))
    reading = read(DATA[:at] + b"\x11" + DATA[at + 1 :])
    assert any("CRC" in warning and "data/0" in warning for warning in reading.warnings)


def test_a_flipped_pickle_byte_is_said() -> None:
    at = DATA.index(b"FloatStorage") - 40
    changed = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
    try:
        warnings = read(changed).warnings
    except Exception as error:
        warnings = [str(error)]
    assert warnings


def test_an_unchanged_file_is_not_warned_of() -> None:
    assert read(DATA).warnings == []


def test_compressed_records_have_their_values_and_are_said() -> None:
    packed = rezipped(DATA, lambda new, name, held: new.writestr(name, held, zipfile.ZIP_DEFLATED))
    assert torch.equal(root(packed)["a"], VALUES)
    assert any("compressed" in warning for warning in read(packed).warnings)


@pytest.mark.parametrize("change", [lambda held: held[:-4], lambda held: held + b"1234"])
def test_a_record_of_another_size_is_damage(change: Any) -> None:
    found = failure(_with("data/0", change))
    assert found.kind == "damaged"
    assert "data/0" in found.message


def test_of_two_records_of_one_name_torch_chooses_and_it_is_said() -> None:
    def write(new: zipfile.ZipFile, name: str, held: bytes) -> None:
        new.writestr(name, held)
        if name.endswith("data/0"):
            with pytest.warns(UserWarning, match="Duplicate"):
                new.writestr(name, struct.pack("<6f", *range(10, 16)))

    doubled = rezipped(DATA, write)
    expected = torch.load(io.BytesIO(doubled), weights_only=True)
    assert torch.equal(root(doubled)["a"], expected["a"])
    assert any("2 records named" in warning for warning in read(doubled).warnings)


def test_a_big_endian_file_is_swapped_and_does_not_point_into_the_source() -> None:
    big = _with("byteorder", lambda held: b"big")
    with source_of(big) as source:
        reading = readers.read(source, manifest.Request(fallback="inert"))
        assert isinstance(reading.root, dict)
        assert torch.equal(reading.root["a"], torch.load(io.BytesIO(big))["a"])
        assert reading.mapping is not None
        start, length = reading.mapping
        assert not start <= reading.root["a"].data_ptr() < start + length


def test_a_stored_record_is_the_source_itself() -> None:
    with source_of(DATA) as source:
        reading = readers.read(source, manifest.Request(fallback="none"))
        assert isinstance(reading.root, dict)
        assert reading.mapping is not None
        offset = reading.root["a"].data_ptr() - reading.mapping[0]
        assert DATA[offset : offset + 24] == struct.pack("<6f", *range(6))


def test_an_encrypted_record_is_damage() -> None:
    changed = bytearray(DATA)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := changed.find(signature, start)) >= 0:
            changed[start + at] |= 1
            start += 4
    assert failure(bytes(changed)).kind == "damaged"


def test_headers_that_disagree_are_said_and_not_mapped() -> None:
    at = DATA.index(b"PK\x03\x04", DATA.index(b"data.pkl"))
    while b"data/0" not in DATA[at + 30 : at + 50]:
        at = DATA.index(b"PK\x03\x04", at + 4)
    changed = DATA[: at + 8] + struct.pack("<H", 8) + DATA[at + 10 :]
    with source_of(changed) as source:
        reading = Reading()
        storage = ZipArchive(source, reading).storage("data/0", 24)
        start, length = source.mapping
        assert not start <= storage.data_ptr() < start + length
        assert any("disagree" in warning for warning in reading.warnings)


def test_a_record_that_claims_too_much_is_a_limit() -> None:
    packed = rezipped(DATA, lambda new, name, held: new.writestr(name, held, zipfile.ZIP_DEFLATED))
    at = packed.index(b"PK\x01\x02")
    while b"data.pkl" not in packed[at + 46 : at + 80]:
        at = packed.index(b"PK\x01\x02", at + 4)
    changed = packed[: at + 24] + struct.pack("<I", 1 << 30) + packed[at + 28 :]
    assert failure(changed).kind in ("limit:output", "damaged")


def test_a_zip_that_torch_never_wrote_says_what_it_holds() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/weights.bin", b"123")
    found = failure(file.getvalue())
    assert found.kind == "unsupported"
    assert "weights.bin" in found.message
