"""Against those who read: errors with escapes in them, names that mean something, output."""

from __future__ import annotations

import os
import sys

ESCAPES = (
    "\x1b[2J\x1b]0;title\x07\x1b]52;c;cm0gLXJmIC8=\x07\x1bP+q\x1b\\\x9b31m\u202eevil\u2066"
    "\r\nINFO forged log line\n\x00\x08\x7f\ud800\udfff\u2028\u2029"
)


def raise_text(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """An exception whose text is full of escapes, and very long."""
    del fds
    raise RuntimeError(ESCAPES * (int(request) // len(ESCAPES) + 1))


def raise_named(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """An exception of the class that the request names, or of one made with that name."""
    del fds
    name = request.decode("utf-8", "surrogateescape")
    kind = getattr(__import__("builtins"), name, None) or type(name, (Exception,), {})
    raise kind(ESCAPES)


class _Lying(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)

    def __repr__(self) -> str:
        os._exit(0)

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/isoload-attack",)


def raise_lying(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """An exception that attacks whoever prints or pickles it."""
    del request, fds
    raise _Lying


def write_all(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Write to stdout, stderr and every descriptor that takes it."""
    del fds
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.write(request.decode())
            stream.flush()
    for fd in (0, 1, 2):
        os.write(fd, request)
    return b"wrote", []
