"""io_uring, whose work other threads of the kernel do: is it confined as its maker is?"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import struct

from tests.attacks.entries.native import attempt, libc, say, syscall

IORING_OP_CONNECT, IORING_OP_OPENAT, IORING_OP_SOCKET = 16, 18, 45
IORING_ENTER_GETEVENTS = 1
OFF_SQES = 0x10000000
SQE = 64


def attack(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Open files and connect to sockets through a ring."""
    del fds
    wanted = json.loads(request)
    results = {"setup": attempt(_Ring)}
    if results["setup"] != "done":
        return say(results)
    ring = _Ring()
    for path in wanted["paths"]:
        name = ctypes.create_string_buffer(path.encode())
        entry = struct.pack(
            "BBHiQQII", IORING_OP_OPENAT, 0, 0, -100, 0, ctypes.addressof(name), 0, os.O_RDWR
        )
        results[f"open {path}"] = ring.submit(entry)
    for path in wanted["sockets"]:
        with socket.socket(socket.AF_UNIX) as client:
            raw = struct.pack("H", socket.AF_UNIX) + path.encode()
            address = ctypes.create_string_buffer(raw, len(raw))
            entry = struct.pack(
                "BBHiQQII",
                IORING_OP_CONNECT, 0, 0, client.fileno(), len(raw), ctypes.addressof(address), 0, 0,
            )  # fmt: skip
            results[f"connect {path}"] = ring.submit(entry)
    return say(results)


class _Ring:
    def __init__(self) -> None:
        params = ctypes.create_string_buffer(120)
        self.fd = syscall("io_uring_setup", 4, params)
        (self.entries, cq_entries, *_) = struct.unpack_from("II", params.raw)
        self.sq = struct.unpack_from("10I", params.raw, 40)
        self.cq = struct.unpack_from("10I", params.raw, 80)
        size = max(self.sq[6] + self.entries * 4, self.cq[5] + cq_entries * 16)
        self.rings = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self.sqes = libc.mmap(
            None, self.entries * SQE, protection, mmap.MAP_SHARED, self.fd, OFF_SQES
        )

    def submit(self, entry: bytes) -> str:
        tail = struct.unpack_from("I", self.rings, self.sq[1])[0]
        index = tail & struct.unpack_from("I", self.rings, self.sq[2])[0]
        ctypes.memmove(self.sqes + index * SQE, entry.ljust(SQE, b"\0"), SQE)
        struct.pack_into("I", self.rings, self.sq[6] + index * 4, index)
        struct.pack_into("I", self.rings, self.sq[1], tail + 1)
        try:
            syscall("io_uring_enter", self.fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0)
        except OSError as error:
            return f"enter: {error.errno}"
        head = struct.unpack_from("I", self.rings, self.cq[0])[0]
        mask = struct.unpack_from("I", self.rings, self.cq[2])[0]
        _, result, _ = struct.unpack_from("QiI", self.rings, self.cq[5] + (head & mask) * 16)
        struct.pack_into("I", self.rings, self.cq[0], head + 1)
        return "done" if result >= 0 else os.strerror(-result)
