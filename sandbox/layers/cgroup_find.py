"""Where this process lives in the cgroup hierarchies, and a directory there as a descriptor.

Read from /proc only: nothing is made, moved or written here. See cgroups(7) and, for the columns
of mountinfo, proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
_OCTAL = re.compile(r"\\([0-7]{3})")


class CgroupUnavailable(Exception):
    """No group can be had for a worker: ``cause`` on this host and its ``remedy``."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


@dataclass(frozen=True)
class Place:
    """The caller's own group in one hierarchy: ``version`` 1 or 2, and its folder.

    ``controllers`` are those that the hierarchy (v1) or the group (v2) has to give.
    """

    version: int
    path: str
    controllers: frozenset[str]


class Directory:
    """One group's folder by descriptor, so that nobody can swap it under us."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, path: str, dir_fd: int | None = None) -> Directory:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        return cls(os.open(path, flags, dir_fd=dir_fd))

    def read(self, name: str) -> str:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts).decode()

    def read_or(self, name: str, default: str) -> str:
        """The file's text, or ``default`` where this kernel or this host has no such file."""
        try:
            return self.read(name)
        except OSError:
            return default

    def write(self, name: str, text: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def pids(self) -> list[int]:
        """The processes in this very group; 0 stands for one outside our pid namespace."""
        return [int(pid) for pid in self.read("cgroup.procs").split()]

    def subgroups(self) -> list[str]:
        with os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def remove(self, name: str) -> bool:
        """Remove an empty group below this one; False where it is not there or not empty."""
        try:
            os.rmdir(name, dir_fd=self.fd)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1


def counters(text: str) -> dict[str, int]:
    """The ``name number`` lines of memory.events, cpu.stat, memory.oom_control and their like."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def places(root: str = "/") -> tuple[Place, ...]:
    """The caller's own group in every hierarchy it can see: v2 first, then v1 by controller."""
    proc = Path(root) / "proc/self"
    own: dict[str, str] = {}
    for line in (proc / "cgroup").read_text(errors="surrogateescape").splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own[name] = path
    found: dict[str, Place] = {}
    for line in (proc / "mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        mount_root, mount_point = (_unescape(word) for word in left.split(" ")[3:5])
        if kind == "cgroup2":
            folder = _folder(mount_root, mount_point, own.get(""))
            if folder is not None and "" not in found and os.path.isdir(root + folder):
                offered = _text(root + folder + "/cgroup.controllers").split()
                found[""] = Place(2, folder, frozenset(offered) & frozenset(CONTROLLERS))
        elif kind == "cgroup":
            for name in set(options.split(",")) & set(CONTROLLERS) - found.keys():
                folder = _folder(mount_root, mount_point, own.get(name))
                if folder is not None and os.path.isdir(root + folder):
                    found[name] = Place(1, folder, frozenset({name}))
    return tuple(found[name] for name in ("", *CONTROLLERS) if name in found)


def _folder(mount_root: str, mount_point: str, own: str | None) -> str | None:
    """The folder of the own group under a mount that shows the hierarchy from ``mount_root`` on."""
    if own is None or own.startswith("/.."):
        return None
    if mount_root == "/":
        below = own
    elif own == mount_root or own.startswith(mount_root + "/"):
        below = own[len(mount_root) :]
    else:
        return None
    return (mount_point.rstrip("/") + "/" + below.strip("/")).rstrip("/")


def _unescape(word: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
