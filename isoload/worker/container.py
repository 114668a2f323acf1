"""What kind of file this is, by its content and never by its name."""

from __future__ import annotations

from .reading import Damaged, Unsupported
from .source import Source

ZIP = "zip"
TAR = "tar"
GZIP = "gzip"
SAFETENSORS = "safetensors"
NPY = "npy"
STREAM = "stream"
"""A stream of pickles: a legacy file or a plain pickle, told apart by its first value."""

_SIGNATURES = (
    (b"PK\x03\x04", ZIP),
    (b"\x1f\x8b\x08", GZIP),
    (b"\x93NUMPY", NPY),
)

_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"BZh", "compressed by bzip2: decompress it first"),
    (b"\xfd7zXZ\x00", "compressed by xz: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: decompress it first"),
    (b"\x04\x22\x4d\x18", "compressed by LZ4: decompress it first"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras, or others)"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "an executable or a shared library"),
    (b"MZ", "a Windows executable"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xef\xbb\xbf", "text"),
    (b"#!", "a script"),
)  # fmt: skip

_TAR_MAGIC = slice(257, 262)
_MAX_HEADER = 100_000_000
"""The bytes that a safetensors header may have (safetensors' own bound)."""


def detect(source: Source) -> str:
    """The container, or Unsupported that says what the file looks like instead."""
    if not source.size:
        raise Damaged("the file is empty")
    head = source.head(512)
    for magic, kind in _SIGNATURES:
        if head.startswith(magic):
            return kind
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise Unsupported(f"not a checkpoint: it looks like {what}")
    if head[4:8] == b"PTMF":
        raise Unsupported(
            "a TorchScript file for mobile devices (flatbuffer), which is not read here"
        )
    if head[_TAR_MAGIC] == b"ustar" or _is_old_tar(head):
        return TAR
    if _is_safetensors(head):
        return SAFETENSORS
    _refuse_text(head)
    return STREAM


def _is_old_tar(head: bytes) -> bool:
    """A tar header without magic: its checksum holds."""
    if len(head) < 512 or head[0] == 0x80:
        return False
    try:
        stored = int(head[148:156].rstrip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return stored == sum(head[:148]) + 8 * 0x20 + sum(head[156:])


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_HEADER


def _refuse_text(head: bytes) -> None:
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise Unsupported(
            "not a checkpoint: it looks like an HTML or XML page, perhaps an error page"
        )
    if start.startswith((b"{", b"[")) and not head.startswith((b"}", b"]")):
        text = head.decode("utf-8", "replace")
        if text.isprintable() or "\n" in text:
            raise Unsupported("not a checkpoint: it looks like JSON")


def nested(kind: str) -> Unsupported:
    """A container within itself."""
    return Unsupported(f"a {kind} file within a {kind} file: unpack it first")
