from __future__ import annotations

import gzip
import hashlib
import io
import os

import pytest

from isoload.errors import CheckpointError, IntegrityError, LimitError
from isoload.source import check_sha256, open_source

CONTENT = bytes(range(256)) * 300


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    return path


def read(source):
    return os.pread(source.fd, source.size + 1, 0)


def open_(f, mmap=False, max_source=1 << 30):
    return open_source(f, mmap=mmap, max_source=max_source, reopen=os.dup)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_is_copied_whole(path, kind):
    with open_(kind(path)) as source:
        assert read(source) == CONTENT
        assert str(path) in source.name


def test_a_snapshot_does_not_follow_the_file(path):
    with open_(path) as source:
        path.write_bytes(b"other")
        assert read(source) == CONTENT


def test_a_snapshot_cannot_be_written_even_by_its_owner(path):
    with open_(path) as source:
        with pytest.raises(PermissionError):
            os.pwrite(source.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(source.fd, 0)


def test_mmap_lies_on_the_file_itself_and_cannot_write_it(path):
    with open_(path, mmap=True) as source:
        assert os.fstat(source.fd).st_ino == path.stat().st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(source.fd, b"x", 0)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_taken(kind):
    with open_(kind(CONTENT)) as source:
        assert read(source) == CONTENT


def test_a_memoryview_of_larger_items_is_taken_as_its_bytes():
    with open_(memoryview(CONTENT).cast("I")) as source:
        assert read(source) == CONTENT


def test_a_file_object_is_read_from_its_position_to_its_end(path):
    with path.open("rb") as file:
        file.seek(100)
        with open_(file) as source:
            assert read(source) == CONTENT[100:]
        assert file.read() == b""


def test_a_buffered_file_object_that_was_peeked_into_is_read_from_its_position(path):
    with path.open("rb") as file:
        assert file.read(3) == CONTENT[:3]
        with open_(file) as source:
            assert read(source) == CONTENT[3:]


def test_a_wrapper_gives_the_bytes_that_it_reads_not_those_of_its_descriptor(tmp_path):
    path = tmp_path / "model.pt.gz"
    path.write_bytes(gzip.compress(CONTENT))
    with gzip.open(path) as file, open_(file) as source:
        assert read(source) == CONTENT


def test_bytes_io_is_read_from_its_position():
    file = io.BytesIO(CONTENT)
    file.seek(7)
    with open_(file) as source:
        assert read(source) == CONTENT[7:]


def test_a_text_file_object_is_a_type_error(path):
    with path.open("r", encoding="latin-1") as file, pytest.raises(TypeError, match="binary mode"):
        open_(file)


def test_mmap_of_what_is_no_path_is_a_value_error():
    with pytest.raises(ValueError, match="needs a path"):
        open_(CONTENT, mmap=True)


def test_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="expected a path"):
        open_(42)


def test_a_missing_path_raises_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_(tmp_path / "none.pt")


def test_a_folder_raises_the_usual_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_(tmp_path)


def test_an_unreadable_path_raises_the_usual_error(path):
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    path.chmod(0)
    with pytest.raises(PermissionError):
        open_(path)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    fifo = tmp_path / "model.pt"
    os.mkfifo(fifo)
    with pytest.raises(CheckpointError, match="no regular file"):
        open_(fifo)


def test_a_device_is_refused():
    with pytest.raises(CheckpointError, match="no regular file"):
        open_("/dev/zero")


@pytest.mark.parametrize("mmap", [False, True])
def test_an_empty_file_is_no_checkpoint(tmp_path, mmap):
    path = tmp_path / "empty.pt"
    path.touch()
    with pytest.raises(CheckpointError, match="empty"):
        open_(path, mmap=mmap)


def test_empty_bytes_are_no_checkpoint():
    for f in (b"", io.BytesIO()):
        with pytest.raises(CheckpointError, match="empty"):
            open_(f)


def test_the_policy_bounds_every_kind_of_source(path):
    for f in (path, CONTENT, io.BytesIO(CONTENT), path.open("rb")):
        with pytest.raises(LimitError, match="larger than the 1000 bytes") as raised:
            open_(f, max_source=1000)
        assert raised.value.limit == "source"
        assert raised.value.allowed == 1000
        if hasattr(f, "close"):
            f.close()


def test_an_endless_file_object_ends_at_the_bound():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"\0" * 65536

    with pytest.raises(LimitError):
        open_(Endless(), max_source=1 << 20)


def test_a_name_with_escapes_is_made_printable(tmp_path):
    path = tmp_path / "a\x1b[31m\nb.pt"
    path.touch()
    with pytest.raises(CheckpointError) as raised:
        open_(path)
    assert "\x1b" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_descriptor_is_left_by_success_or_failure(path, tmp_path):
    before = os.listdir("/proc/self/fd")
    open_(path).__exit__()
    for f, options in ((tmp_path, {}), (path, {"max_source": 1}), (CONTENT, {"max_source": 1})):
        with pytest.raises((OSError, LimitError)):
            open_(f, **options)
    assert os.listdir("/proc/self/fd") == before


def test_the_digest_is_that_of_the_bytes(path):
    with open_(path) as source:
        digest = source.start_digest()
        assert digest.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
        digest.verify(hashlib.sha256(CONTENT).hexdigest().upper(), "model.pt")
        with pytest.raises(IntegrityError, match=r"model\.pt: its sha256 is"):
            digest.verify("0" * 64, "model.pt")


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, "0" * 65])
def test_a_malformed_digest_is_a_value_error(sha256):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        check_sha256(sha256)


def test_a_digest_of_another_type_is_a_type_error():
    with pytest.raises(TypeError):
        check_sha256(b"0" * 64)
