"""One worker that tries a little of everything: for hosts on which a layer is missing."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
from pathlib import Path

from tests.attacks.entries.native import attempt, libc, say, syscall
from tests.attacks.entries.processes import PTRACE_SEIZE


def everything(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Each attack on the canaries that the request names; what came of it is judged outside."""
    del fds
    canary = json.loads(request)
    results = {
        "read": attempt(_read, canary["file"]),
        "list": attempt(os.listdir, os.path.dirname(canary["file"])),
        "write": attempt(_write, canary["file"]),
        "create": attempt(_write, canary["file"] + ".new"),
        "signal": attempt(os.kill, canary["pid"], signal.SIGUSR1),
        "group": attempt(os.kill, 0, signal.SIGURG),
        "trace": attempt(syscall, "ptrace", PTRACE_SEIZE, canary["pid"], 0, 0),
        "memory": attempt(_peek, canary["pid"], canary["address"]),
        "proc": attempt(_read, f"/proc/{canary['pid']}/environ"),
        "setuid": attempt(_become_root),
        "mount": attempt(_remount),
        "tcp": attempt(_connect, socket.AF_INET, socket.SOCK_STREAM, tuple(canary["tcp"])),
        "udp": attempt(_connect, socket.AF_INET, socket.SOCK_DGRAM, tuple(canary["udp"])),
        "abstract": attempt(_connect, socket.AF_UNIX, socket.SOCK_STREAM, canary["abstract"]),
        "pathname": attempt(_connect, socket.AF_UNIX, socket.SOCK_STREAM, canary["pathname"]),
    }
    return say(results)


def _read(path: str) -> None:
    if not Path(path).read_bytes():
        raise PermissionError(path)


def _write(path: str) -> None:
    with contextlib.suppress(PermissionError, FileNotFoundError):
        os.unlink(path)
    Path(path).write_bytes(b"attacked")


def _become_root() -> None:
    """Become root, or be root with rights: its number alone is worth nothing."""
    before = os.getuid()
    os.setresuid(0, 0, 0)
    data = ctypes.create_string_buffer(24)
    libc.capget(struct.pack("Ii", 0x20080522, 0), data)
    if before == 0 and not any(data.raw):
        raise PermissionError


def _peek(pid: int, address: int) -> None:
    buffer = ctypes.create_string_buffer(16)
    local = struct.pack("QQ", ctypes.addressof(buffer), 16)
    syscall("process_vm_readv", pid, local, 1, struct.pack("QQ", address, 16), 1, 0)


def _remount() -> None:
    attributes = struct.pack("QQQQ", 0, 1, 0, 0)
    syscall("mount_setattr", -100, b"/", 0, attributes, len(attributes))


def _connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        client.connect(address)  # type: ignore[arg-type]  # per family
        client.send(b"attack")
