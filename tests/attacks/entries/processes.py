"""Against other processes: signals, tracing, memory, descriptors, keys, sockets, terminals."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import termios

from tests.attacks.entries.native import attempt, libc, open_descriptors, say, sockets, syscall

F_SETOWN_EX = 15
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
KEYCTL_READ, KEYCTL_SEARCH, KEYCTL_DESCRIBE = 11, 10, 6
KEY_SPEC_SESSION_KEYRING, KEY_SPEC_USER_KEYRING, KEY_SPEC_USER_SESSION_KEYRING = -3, -4, -5


def signals(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Signal everybody: the group, all, each pid and group of the request, by every call."""
    del fds
    results = {}
    for number in (signal.SIGUSR1, signal.SIGURG, signal.SIGHUP, signal.SIGTERM):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
        for pid in (0, -1, *json.loads(request)):
            results[f"kill({pid}, {number})"] = attempt(os.kill, pid, number)
            if pid > 1:
                results[f"killpg({pid}, {number})"] = attempt(os.killpg, pid, number)
                results[f"pidfd_open({pid})"] = attempt(os.pidfd_open, pid)
    for fd in sockets():
        for pid in json.loads(request):
            results[f"F_SETOWN({pid})"] = attempt(fcntl.fcntl, fd, fcntl.F_SETOWN, pid)
            results[f"F_SETOWN({-pid})"] = attempt(fcntl.fcntl, fd, fcntl.F_SETOWN, -pid)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        results[f"O_ASYNC({fd})"] = attempt(fcntl.fcntl, fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    results["getsid"] = str(os.getsid(0))
    results["getpgid"] = str(os.getpgid(0))
    results["getppid"] = str(os.getppid())
    return say(results)


def descriptors(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """List every descriptor that is open."""
    del request
    return say({"open": open_descriptors(), "given": fds})


def trace(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Read and write another process: by ptrace, process_vm_*, /proc/PID/mem and pidfd_getfd."""
    del fds
    pid, address, length = json.loads(request)
    results = {}
    got = bytearray()
    buffer = ctypes.create_string_buffer(b"\xff" * length, length)
    local = struct.pack("QQ", ctypes.addressof(buffer), length)
    remote = struct.pack("QQ", address, length)
    for target in (pid, os.getppid(), *range(2, 64)):
        for request_number in (PTRACE_SEIZE, PTRACE_ATTACH):
            results[f"ptrace({request_number:#x}, {target})"] = attempt(
                syscall, "ptrace", request_number, target, 0, 0
            )
        for call in ("process_vm_readv", "process_vm_writev"):
            results[f"{call}({target})"] = attempt(syscall, call, target, local, 1, remote, 1, 0)
        got += bytes(buffer)
        for name in ("mem", "environ", "cmdline", "maps", "fd", "root"):
            path = f"/proc/{target}/{name}"
            results[path] = attempt(os.open, path, os.O_RDONLY)
        results[f"pidfd_getfd({target})"] = attempt(_steal, target)
    return say({"results": results, "read": bytes(got).strip(b"\xff").hex()})


def _steal(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    syscall("pidfd_getfd", pidfd, 0, 0)


def terminal(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Type a command into the caller's terminal."""
    del fds
    results = {}
    targets = [*open_descriptors()]
    for path in (
        "/dev/tty",
        "/dev/console",
        "/dev/ptmx",
        "/dev/pts/ptmx",
        "/dev/pts/0",
        "/dev/tty1",
    ):
        with contextlib.suppress(OSError):
            targets.append(os.open(path, os.O_RDWR | os.O_NOCTTY))
    for fd in targets:
        for character in request:
            results[f"TIOCSTI({fd})"] = attempt(
                fcntl.ioctl, fd, termios.TIOCSTI, bytes([character])
            )
        results[f"TIOCSCTTY({fd})"] = attempt(fcntl.ioctl, fd, termios.TIOCSCTTY, 1)
        results[f"TIOCLINUX({fd})"] = attempt(fcntl.ioctl, fd, 0x541C, b"\x03")
    return say(results)


def pipes(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Talk to multiprocessing's helpers: the request is written to every pipe and socket."""
    del fds
    message = json.loads(request)
    results = {}
    for fd, status in open_descriptors().items():
        if stat.S_ISFIFO(status["kind"]):
            results[f"write({fd})"] = attempt(os.write, fd, message["line"].encode())
    for address in message["listeners"]:
        results[address] = attempt(_connect, socket.AF_UNIX, socket.SOCK_STREAM, address)
    return say(results)


def _connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        client.connect(address)  # type: ignore[arg-type]  # per family
        with contextlib.suppress(OSError):
            client.send(b"isoload-attack")


def connect(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Connect to each address of the request: [family, kind, address]."""
    del fds
    results = {}
    for family, kind, address in json.loads(request):
        where = tuple(address) if isinstance(address, list) else address
        results[f"{family}/{kind}/{address}"] = attempt(_connect, family, kind, where)
    return say(results)


def ipc(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """System V shared memory by key and by number, and the caller's keys by name and by serial."""
    del fds
    wanted = json.loads(request)
    results = {"shmget": attempt(syscall, "shmget", wanted["key"], 0, 0)}
    libc.shmat.restype = ctypes.c_void_p
    for number in (wanted["shmid"], *range(64)):
        address = libc.shmat(number, None, 0)
        results[f"shmat({number})"] = "refused" if address in (None, 2**64 - 1) else "done"
        if results[f"shmat({number})"] == "done":
            ctypes.memset(address, 0x41, 16)
    name = wanted["description"].encode()
    found = ctypes.create_string_buffer(64)
    serials = [wanted["serial"]]
    for ring in (
        KEY_SPEC_SESSION_KEYRING,
        KEY_SPEC_USER_KEYRING,
        KEY_SPEC_USER_SESSION_KEYRING,
        wanted["ring"],
    ):
        with contextlib.suppress(OSError):
            serials.append(syscall("keyctl", KEYCTL_SEARCH, ring, b"user", name, 0))
    with contextlib.suppress(OSError):
        serials.append(syscall("request_key", b"user", name, None, 0))
    for serial in serials:
        results[f"read({serial})"] = attempt(
            syscall, "keyctl", KEYCTL_READ, serial, found, len(found)
        )
    return say({"results": results, "read": found.raw.rstrip(b"\0").hex()})
