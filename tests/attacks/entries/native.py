"""The attacker's hands: system calls by number, and what came of each attempt.

Everything is imported and looked up while the zygote preloads, as an attacker would find it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import stat
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_X86 = {
    "shmget": 29, "shmat": 30, "shmctl": 31, "ptrace": 101, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "open_by_handle_at": 304, "name_to_handle_at": 303, "bpf": 321,
    "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250,
    "execveat": 322, "init_module": 175, "kexec_load": 246, "fcntl": 72, "syslog": 103,
    "chroot": 161, "mknod": 133, "fsetxattr": 190, "ioctl": 16, "prctl": 157, "setrlimit": 160,
}  # fmt: skip
_ARM = {
    "shmget": 194, "shmat": 196, "shmctl": 195, "ptrace": 117, "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271, "open_by_handle_at": 265, "name_to_handle_at": 264, "bpf": 280,
    "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219,
    "execveat": 281, "init_module": 105, "kexec_load": 104, "fcntl": 25, "syslog": 116,
    "chroot": 51, "fsetxattr": 7, "ioctl": 29, "prctl": 167, "setrlimit": 164,
}  # fmt: skip
_NEW = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
NUMBERS = {**(_ARM if platform.machine() == "aarch64" else _X86), **_NEW}

SCAN = 4096
"""Descriptors that are looked at: more than any limit that a worker gets."""


def syscall(name: str, *arguments: Any) -> int:
    """The call by its number; raises OSError."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(libc.syscall(ctypes.c_long(NUMBERS[name]), *wide))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def attempt(call: Callable[..., Any], *arguments: Any) -> str:
    """ "done", or the name of the error with which the kernel refused."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except Exception as error:
        return type(error).__name__
    return "done"


def say(value: Any, fds: tuple[int, ...] = ()) -> tuple[bytes, list[int]]:
    return json.dumps(value).encode(), [*fds]


def open_descriptors() -> dict[int, dict[str, int]]:
    """Every open descriptor: its kind, device and inode."""
    found = {}
    for fd in range(SCAN):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        found[fd] = {
            "kind": stat.S_IFMT(status.st_mode),
            "device": status.st_dev,
            "inode": status.st_ino,
            "rdev": status.st_rdev,
        }
    return found


def sockets() -> list[int]:
    """The descriptors that are sockets: the reply's channel is among them."""
    return [fd for fd, status in open_descriptors().items() if stat.S_ISSOCK(status["kind"])]
