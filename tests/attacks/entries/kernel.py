"""Against the confinement itself: regain a capability, a namespace, a mount, a program."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import resource
import stat
import struct
from pathlib import Path

from tests.attacks.entries.native import attempt, libc, open_descriptors, say, syscall

NAMESPACES = {
    "user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000,
    "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000, "time": 0x80,
}  # fmt: skip
MS_REMOUNT, MS_BIND, MS_REC = 0x20, 0x1000, 0x4000
PR_GET_NO_NEW_PRIVS, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_MDWE = 39, 3, 4, 66


def regain(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Every way back to a capability or a namespace; the request names canary files."""
    canaries = json.loads(request)
    results = {}
    for name, flag in NAMESPACES.items():
        results[f"unshare({name})"] = attempt(_checked, libc.unshare(flag))
    results["unshare(user|all)"] = attempt(_checked, libc.unshare(sum(NAMESPACES.values()) - 0x80))
    results["clone(user)"] = _forked(lambda: _checked(libc.unshare(NAMESPACES["user"])))
    results["chroot"] = attempt(os.chroot, "/tmp")
    for uid in (0, 1000, 65534):
        if uid != os.getuid():
            results[f"setresuid({uid})"] = attempt(os.setresuid, uid, uid, uid)
            results[f"setresgid({uid})"] = attempt(os.setresgid, uid, uid, uid)
    results["setgroups"] = attempt(os.setgroups, [0])
    for path in ("/", "/python/0", "/tmp"):
        for flags in (MS_REMOUNT | MS_BIND, MS_REMOUNT, MS_BIND | MS_REC):
            result = libc.mount(b"/", path.encode(), None, flags, None)
            results[f"mount({path}, {flags:#x})"] = attempt(_checked, result)
        results[f"umount({path})"] = attempt(_checked, libc.umount2(path.encode(), 2))
        results[f"open_tree({path})"] = attempt(
            syscall, "open_tree", -100, path.encode(), 1 | os.O_CLOEXEC
        )
        attributes = struct.pack("QQQQ", 0, 1, 0, 0)
        results[f"mount_setattr({path})"] = attempt(
            syscall, "mount_setattr", -100, path.encode(), 0, attributes, len(attributes)
        )
    results["mount(proc)"] = attempt(_checked, libc.mount(b"proc", b"/tmp", b"proc", 0, None))
    results["fsopen(tmpfs)"] = attempt(syscall, "fsopen", b"tmpfs", 0)
    for fd in open_descriptors():
        results[f"setns({fd})"] = attempt(syscall, "setns", fd, 0)
        results[f"fchdir({fd})"] = attempt(os.fchdir, fd)
    for fd in fds:
        handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
        mount_id = ctypes.c_int()
        results[f"name_to_handle_at({fd})"] = attempt(
            syscall, "name_to_handle_at", fd, b"", handle, ctypes.byref(mount_id), 0x1000
        )
        results[f"open_by_handle_at({fd})"] = attempt(
            syscall, "open_by_handle_at", fd, handle, os.O_RDWR
        )
    results["bpf"] = attempt(syscall, "bpf", 0, struct.pack("IIII", 2, 4, 8, 1), 16)
    results["perf_event_open"] = attempt(
        syscall, "perf_event_open", struct.pack("IIQ", 0, 112, 0) + bytes(96), -1, 0, -1, 0
    )
    results["init_module"] = attempt(syscall, "init_module", b"x", 1, b"")
    results["kexec_load"] = attempt(syscall, "kexec_load", 0, 0, 0, 0)
    results["syslog"] = attempt(syscall, "syslog", 3, ctypes.create_string_buffer(64), 64)
    results["mknod"] = attempt(os.mknod, "/tmp/sda", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    for path in (*canaries, *_cgroup_files()):
        results[f"write({path})"] = attempt(_write, path)
    for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_CORE"):
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            results[f"raise({name})"] = attempt(resource.setrlimit, kind, (hard + 1, hard + 1))
    return say(results)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _forked(call: object) -> str:
    """The attempt in a child: an unshare there must fail as well."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, attempt(call).encode())  # type: ignore[arg-type]  # any callable
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(read, 100).decode()


def _cgroup_files() -> list[str]:
    names = (
        "cgroup.procs",
        "memory.max",
        "memory/memory.limit_in_bytes",
        "cgroup.kill",
        "pids.max",
    )
    return [f"/sys/fs/cgroup/{name}" for name in names]


def _write(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    Path(path).write_bytes(b"0")


def state(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """What the kernel says this process is."""
    del request, fds
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    libc.capget(header, data)
    return say(
        {
            "capabilities": data.raw.hex(),
            "no_new_privs": libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
            "dumpable": libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
            "mdwe": libc.prctl(PR_GET_MDWE, 0, 0, 0, 0),
            "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
            "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        }
    )


def execute(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Run a program: the host's setuid ones, the interpreter, a copy in /tmp, a setuid memfd."""
    del fds
    results = {}
    for path in (*json.loads(request), "/bin/sh", "/usr/bin/python3"):
        results[f"execve({path})"] = _executed(path)
    program = _program()
    with contextlib.suppress(OSError):
        Path("/tmp/program").write_bytes(program)
        os.chmod("/tmp/program", 0o6755)
    results["execve(/tmp/program)"] = _executed("/tmp/program")
    memfd = os.memfd_create("program", 0)
    os.write(memfd, program)
    with contextlib.suppress(OSError):
        os.fchmod(memfd, 0o6755)
    results["execveat(memfd)"] = _executed("", memfd)
    return say(results)


def _program() -> bytes:
    """A static ELF for x86-64 that exits with its effective uid: mov eax,107; syscall; exit."""
    code = b"\xb8\x6b\x00\x00\x00\x0f\x05\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05"
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 120 + len(code)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 4096) + code


def _executed(path: str, fd: int = -1) -> str:
    if fd >= 0 and platform.machine() != "x86_64":
        return "not tried"
    child = os.fork()
    if not child:
        argv = (ctypes.c_char_p * 2)(path.encode() or b"memfd", None)
        if fd < 0:
            with contextlib.suppress(OSError):
                os.execve(path, [path], {})
        else:
            with contextlib.suppress(OSError):
                syscall("execveat", fd, b"", argv, None, 0x1000)
        os._exit(201)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "refused" if code == 201 else f"ran: {code}"


def crash(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Leave a core: make it possible again as far as the kernel lets, then die by SIGSEGV."""
    del fds
    canary = bytearray(request)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError):
        os.chdir("/tmp")
    ctypes.memmove(8, bytes(canary), len(canary))
    return b"", []


def write_and_run(request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
    """Memory that can be both written and executed."""
    del request, fds
    page, anonymous = mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    all_three = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    address = libc.mmap(None, page, all_three, anonymous, -1, 0)
    results = {"mmap": "refused" if address in (None, 2**64 - 1) else "done"}
    address = libc.mmap(None, page, mmap.PROT_READ | mmap.PROT_WRITE, anonymous, -1, 0)
    changed = libc.mprotect(address, page, mmap.PROT_READ | mmap.PROT_EXEC)
    results["mprotect"] = "refused" if changed else "done"
    return say(results)
