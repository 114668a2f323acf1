"""Against secrets: search all of one's own memory, walk the file system, name the host's files."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import re
import struct
import sys
import time

from tests.attacks.entries.native import attempt, libc, say, syscall

CANARY = re.compile(rb"ISOLOAD-CANARY-[0-9a-f]{32}")
PAGE = mmap.PAGESIZE
CHUNK = 1 << 20
GAP = 4 << 20
SECONDS = 8.0


def memory(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Every canary in memory that this process can reach from what it knows the address of."""
    del request, fds
    found: set[str] = set()
    searched = 0
    seen: list[tuple[int, int]] = []
    until = time.monotonic() + SECONDS
    for seed in _seeds():
        if any(start <= seed < end for start, end in seen):
            continue
        start, end = _search(seed, found, until)
        seen.append((start, end))
        searched += end - start
    return say({"found": sorted(found), "searched": searched})


def _seeds() -> list[int]:
    """Addresses in the heap, the stack, the environment, the libraries and every large object."""
    symbols = [ctypes.c_void_p.in_dll(libc, name) for name in ("environ", "stdout")]
    seeds = [symbol.value or 0 for symbol in symbols]
    seeds += [ctypes.addressof(symbol) for symbol in symbols]
    libc.sbrk.restype = ctypes.c_void_p
    seeds.append((libc.sbrk(0) or PAGE) - PAGE)
    seeds += [id(found) for found in gc.get_objects()]
    seeds += [id(sys.argv), id(os.environ), id(sys.modules)]
    return sorted({seed & ~(PAGE - 1) for seed in seeds if seed})


def _search(seed: int, found: set[str], until: float) -> tuple[int, int]:
    """Search up and down from an address, over gaps of up to a few MiB."""
    ends = []
    for step in (CHUNK, -CHUNK):
        at, missing = seed if step > 0 else seed - CHUNK, 0
        while missing < GAP and time.monotonic() < until and at > 0:
            data = _read(at, CHUNK)
            missing = 0 if data else missing + CHUNK
            found.update(match.decode() for match in CANARY.findall(data))
            at += step
        ends.append(at)
    return ends[1], ends[0]


def _read(address: int, length: int) -> bytes:
    """What of a range can be read: process_vm_readv on oneself fails where a signal would kill."""
    buffer = ctypes.create_string_buffer(length)
    local = struct.pack("QQ", ctypes.addressof(buffer), length)
    got = bytearray()
    try:
        count = syscall("process_vm_readv", os.getpid(), local, 1, _iovec(address, length), 1, 0)
        return buffer.raw[:count]
    except OSError:
        pass
    for offset in range(0, length, PAGE):
        try:
            local = struct.pack("QQ", ctypes.addressof(buffer), PAGE)
            iovec = _iovec(address + offset, PAGE)
            syscall("process_vm_readv", os.getpid(), local, 1, iovec, 1, 0)
            got += buffer.raw[:PAGE]
        except OSError:
            continue
    return bytes(got)


def _iovec(address: int, length: int) -> bytes:
    return struct.pack("QQ", address, length)


def own_memory_shows(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """As `memory`, with a canary of one's own: shows that the search finds what is there."""
    planted = b"ISOLOAD-CANARY-" + request
    data, _ = memory(request, fds)
    assert len(planted) > len(request)
    return data, []


def files(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Try each path of the request; then walk all that there is, and try to write to it."""
    del fds
    results = {}
    for path in json.loads(request):
        results[path] = {
            "stat": attempt(os.stat, path),
            "open": attempt(os.open, path, os.O_RDONLY),
            "list": attempt(os.listdir, path),
            "create": attempt(os.open, path + "/isoload-attack", os.O_CREAT | os.O_WRONLY),
        }
    seen, writable = {}, []
    for top in ("/", "/python", "/python/0", "/python/own0", "/lib", "/usr", "/dev", "/tmp", "/.."):
        for folder, names, here in os.walk(top):
            seen[folder] = sorted([*names, *here])[:100]
            if attempt(_create, folder) == "done":
                writable.append(folder)
            if folder.count("/") > 5:
                names.clear()
    return say({"tried": results, "seen": seen, "writable": writable})


def _create(folder: str) -> None:
    path = os.path.join(folder, "isoload-attack")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    os.unlink(path)


def beyond_the_end(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """What lies in the last page of a segment after its last byte."""
    del request
    size = os.fstat(fds[0]).st_size
    with mmap.mmap(fds[0], size, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapping:
        address = libc.mmap(
            None, -(-size // PAGE) * PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE, fds[0], 0
        )
        rest = ctypes.string_at(address + size, -size % PAGE)
        return say({"rest": rest.strip(b"\0").hex(), "size": len(mapping)})
