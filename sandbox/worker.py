"""The worker: confines itself, says READY, serves one request, waits to be killed.

Everything before the entry is called is trusted; nothing after is. There is no clean-up: SIGKILL
is the only way out.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from sandbox import channel, confine, imports, kernel
from sandbox.layers import Place, rlimits
from sandbox.limits import ResolvedLimits

_DETAIL = 2000  # characters
_LIMIT_ERRNO = {
    errno.ENOMEM: "memory",
    errno.EFBIG: "output",
    errno.ENOSPC: "output",
    errno.EMFILE: "open_files",
    errno.EAGAIN: "processes",
}

renamed: dict[str, str] = {}  # path outside → path inside, as the zygote taught this interpreter
# What a spare does while it waits, in steps: the zygote sets it.
rehearsal: list[Callable[[], Iterable[object]]] = []


def main(place: Place) -> NoReturn:
    """In the zygote's child. Never returns, whatever happens."""
    try:
        # Not only as a layer, which a caller may give up: among them is the zygote's control.
        kernel.close_all_but({0, 1, 2, place.plan.proc, place.channel})
        sock = _channel(place)
        _, _, place.join = channel.receive(sock)
        sock.detach()
        confine.confine(place)
        if not place.jail:
            imports.rename({inside: outside for outside, inside in renamed.items()})
        random.seed()  # or every worker would draw the zygote's numbers
        sock = _channel(place)
        channel.send(sock, channel.READY, place.record.encode())
        if place.spare:
            _rehearse(sock)
        _serve(sock, place)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _channel(place: Place) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=place.channel)


def _rehearse(sock: socket.socket) -> None:
    """Until the request comes."""
    for rehearse in rehearsal:
        for _ in rehearse():
            if select.select([sock], [], [], 0)[0]:
                return


def _serve(sock: socket.socket, place: Place) -> None:
    _, body, fds = channel.receive(sock)
    head, _, request = body.partition(b"\n")
    order = json.loads(head)
    limits = ResolvedLimits(**order["limits"])
    try:
        entry = find(order["entry"])
        if "rlimits" not in place.disabled:
            rlimits.for_request(place.plan, limits)
    except (ImportError, AttributeError, OSError) as error:
        channel.send(sock, channel.REFUSED, _words(error))
        return
    gc.freeze()  # what is here already outlives the entry: not to be walked
    gc.enable()
    try:
        reply, returned = entry(request, fds)
        if not isinstance(reply, (bytes, bytearray, memoryview)):
            raise TypeError(f"{order['entry']} must return (bytes, descriptors)")
        channel.send(sock, channel.REPLY, bytes(reply), returned)
    except BaseException as error:
        channel.send(sock, channel.FAILED, _limit(error).encode() + b"\0" + _words(error))


def find(entry: str) -> Callable[..., Any]:
    """What "package.module:function" names."""
    module, _, name = entry.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # what the caller's name leads to


def _limit(error: BaseException) -> str:
    """The limit that an entry's exception speaks of. It may lie: it is only a label."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and error.errno is not None:
        return _LIMIT_ERRNO.get(error.errno, "")
    return ""


def _words(error: BaseException) -> bytes:
    try:
        text = f"{type(error).__name__}: {str(error)[:_DETAIL]}"
    except Exception:  # the entry's own class: its __str__ may do anything
        text = type(error).__name__
    return text[:_DETAIL].encode("utf-8", "backslashreplace")
