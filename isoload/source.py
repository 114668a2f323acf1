"""What the caller gave → a source: a descriptor whose bytes the worker opens and the result lies
on.

A snapshot is a sealed memfd, so that neither the worker nor anybody else can change the bytes after
the copy. With `mmap=True` the source is the file itself, as with torch.load(mmap=True): whoever can
write the file can change the tensors.

A large file is lent to the worker too, which reads it while its snapshot is taken. So is any in the
format from before torch 1.6 with `mmap=True`: its tensors do not lie there aligned. A file is lent
through a read-only mount, or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import io
import os
import re
import stat
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Union

from sandbox import create_memfd, printable, seal

from . import snapshot
from .copying import Copying, copying
from .errors import CheckpointError, IntegrityError, LimitError
from .manifest import LEGACY_MAGIC
from .memory import map_private

Reopen = Callable[[int], int]
"""A descriptor → the same file through a read-only mount. Raises OSError."""

SourceLike = Union[str, "os.PathLike[str]", BinaryIO, bytes, bytearray, memoryview]

_CHUNK = 1 << 24
_NO_MMAP = "mmap=True was not possible, a snapshot was made"
_LENT_FROM = 8 << 20  # bytes: below this a copy costs less than to open the file again


class Source:
    """The bytes of one checkpoint: `fd`, `size` in bytes, and a printable `name` for messages.

    `warning`: what the report should say, or "". `copying`: their snapshot, while it is being made;
    see `settle`. `lead`: the bytes before the file's first in `memory`. Use as a context manager:
    leaving it closes the descriptor. Memory that it gave lives on.
    """

    def __init__(
        self,
        fd: int,
        size: int,
        name: str,
        *,
        warning: str = "",
        copying: Copying | None = None,
    ) -> None:
        self.fd = fd
        self.size = size
        self.name = name
        self.warning = warning
        self.digest: Digest | None = None
        self.lead = copying.lead if copying is not None else 0
        self._copying = copying
        self._copy: memoryview | None = None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.digest is not None:
            self.digest.cancel()
        if self._copying is not None:
            self._copying.cancel()
        os.close(self.fd)

    def copy(self) -> None:
        """Begin to make the snapshot, if one is to be made while the file is lent."""
        if self._copying is not None:
            self._copying.start()

    @property
    def copies_long(self) -> bool:
        """Whether that takes longer than all else."""
        return self._copying is not None and self._copying.large

    def settle(self) -> bool:
        """Wait for the snapshot that is being made, if one is: from here it is the source.

        False: the file changed meanwhile, and what was read of it counts for nothing: `fd` is the
        snapshot now. Raises OSError where the file could not be read.
        """
        if self._copying is None:
            return True
        self._copy, same = self._copying.finish()
        self._copying = None
        if not same:
            self.size = self._copy.nbytes - self.lead
            fd = snapshot.sealed(self._copy[self.lead :])
            os.close(self.fd)
            self.fd = fd
        return same

    @property
    def copied(self) -> bool:
        """Was a snapshot made while the file was lent?"""
        return self._copy is not None

    def memory(self) -> memoryview:
        """What the result lies on: private to this process, writable, `lead` bytes before the
        file's first."""
        if self._copy is not None:
            return self._copy
        return memoryview(map_private(self.fd, self.size))

    def start_digest(self) -> Digest:
        """Begin the sha256 of the bytes in another thread."""
        self.digest = Digest(self.fd, self.size)
        return self.digest


class Digest:
    """A sha256 that is computed while the worker reads. hashlib lets go of the interpreter lock."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._hash = hashlib.sha256()
        self._cancelled = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="isoload-sha256", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        buffer = memoryview(bytearray(min(_CHUNK, max(1, self._size))))
        done = 0
        try:
            while done < self._size and not self._cancelled:
                count = os.preadv(self._fd, [buffer[: self._size - done]], done)
                if not count:
                    raise OSError(errno.EIO, "the file became shorter while it was read")
                self._hash.update(buffer[:count])
                done += count
        except BaseException as error:
            self._error = error  # for `hexdigest` to raise

    def cancel(self) -> None:
        """Stop, and wait until the thread has let go of the descriptor."""
        self._cancelled = True
        self._thread.join()

    def hexdigest(self) -> str:
        """Wait for the whole digest. Raises OSError where the file could not be read."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def verify(self, expected: str, name: str) -> None:
        """Raise IntegrityError unless the digest is `expected`."""
        actual = self.hexdigest()
        if not hmac.compare_digest(actual, expected.lower()):
            raise IntegrityError(
                f"{name}: its sha256 is {actual}, not {expected.lower()}: this is another file "
                "than the one you named, or it was changed; nothing was loaded"
            )


def check_sha256(sha256: str | None) -> None:
    """Raise TypeError or ValueError unless `sha256` is None or 64 hexadecimal digits."""
    if sha256 is None:
        return
    if not isinstance(sha256, str):
        raise TypeError(f"sha256 must be a str, not {type(sha256).__name__}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError("sha256 must be 64 hexadecimal digits")


def is_at_hand(f: SourceLike) -> bool:
    """Whether the bytes come from the file system or from memory, and not from code of the
    caller's, which may wait for a network."""
    return isinstance(f, (str, os.PathLike, bytes, bytearray, memoryview))


def open_source(
    f: SourceLike, *, mmap: bool, max_source: int, reopen: Reopen | None = None
) -> Source:
    """Make a source of what the caller gave; without `reopen` always a snapshot.

    Raises OSError for a path that cannot be opened, TypeError or ValueError for a wrong argument,
    CheckpointError for what is no regular file or is empty, LimitError for more than `max_source`
    bytes.
    """
    if isinstance(f, (str, os.PathLike)):
        return _from_path(f, mmap, max_source, reopen)
    if mmap:
        raise ValueError("mmap=True needs a path: there is no file to lie on")
    if isinstance(f, (bytes, bytearray, memoryview)):
        return _from_buffer(memoryview(f).cast("B"), max_source)
    if callable(getattr(f, "read", None)):
        return _from_file(f, max_source, reopen)
    raise TypeError(f"expected a path, a binary file object or bytes, not {type(f).__name__}")


def _from_path(
    path: str | os.PathLike[str], mmap: bool, max_source: int, reopen: Reopen | None
) -> Source:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    name = printable(os.fsdecode(path), 512)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{name}: is no regular file (a pipe, socket or device)")
        size = os.fstat(fd).st_size
        _check_size(size, max_source, name)
        return _from_region(fd, 0, size, name, reopen, mmap=mmap)
    finally:
        os.close(fd)


def _from_region(
    fd: int, offset: int, size: int, name: str, reopen: Reopen | None, *, mmap: bool = False
) -> Source:
    """The bytes of a regular file from `offset` on. `reopen`: where all of it may be lent."""
    warning = ""
    if reopen is not None and (mmap or size >= _LENT_FROM):
        legacy = os.pread(fd, len(LEGACY_MAGIC), 0) == LEGACY_MAGIC
        if mmap and legacy:
            warning = f"{_NO_MMAP}: the file is of the format from before torch 1.6"
        try:
            if mmap and not legacy:
                return Source(reopen(fd), size, name)
            return _lent(fd, size, name, reopen, legacy=legacy, warning=warning)
        except OSError as error:
            if mmap:
                warning = f"{_NO_MMAP}: {error}"
    return Source(*snapshot.take(fd, offset, size, name), name, warning=warning)


def _lent(fd: int, size: int, name: str, reopen: Reopen, *, legacy: bool, warning: str) -> Source:
    """The file, opened again for the worker, and to be copied."""
    copy = copying(fd, size, name, at_end=legacy)
    try:
        return Source(reopen(fd), size, name, warning=warning, copying=copy)
    except BaseException:
        copy.cancel()
        raise


def _from_buffer(view: memoryview, max_source: int) -> Source:
    name = f"<{view.nbytes} bytes>"
    _check_size(view.nbytes, max_source, name)
    return Source(snapshot.sealed(view), view.nbytes, name)


def _from_file(f: Any, max_source: int, reopen: Reopen | None) -> Source:
    name = printable(str(getattr(f, "name", "<file object>")), 512)
    region = _region(f)
    if region is not None:
        fd, offset, size = region
        _check_size(size, max_source, name)
        source = _from_region(fd, offset, size, name, None if offset else reopen)
        f.seek(0, io.SEEK_END)  # the bytes count as read
        return source
    memfd = create_memfd("isoload-source")
    try:
        size = 0
        while chunk := f.read(_CHUNK):
            if isinstance(chunk, str):
                raise TypeError("the file object gives text: open it in binary mode")
            size += len(chunk)
            _check_size(size, max_source, name)
            snapshot.write_all(memfd, memoryview(chunk).cast("B"))
        _check_size(size, max_source, name)
        seal(memfd)
    except BaseException:
        os.close(memfd)
        raise
    return Source(memfd, size, name)


def _region(f: Any) -> tuple[int, int, int] | None:
    """The descriptor, position and number of bytes left, where `f` is plainly a regular file's
    reader."""
    if type(f) not in (io.BufferedReader, io.FileIO, io.BufferedRandom):
        return None  # a subclass or wrapper may give other bytes than its descriptor
    fd = f.fileno()
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    if isinstance(f, io.BufferedRandom):
        f.flush()
    offset = f.tell()
    return fd, offset, max(0, os.fstat(fd).st_size - offset)


def _check_size(size: int, max_source: int, name: str) -> None:
    if not size:
        raise CheckpointError(f"{name}: is empty")
    if size > max_source:
        raise LimitError(
            f"{name}: is larger than the {max_source} bytes that the policy accepts; raise "
            "Policy.max_source if you expect such a file",
            "source",
            max_source,
        )
