"""A memory, pids and cpu group for one worker, cgroup v2 or v1. Used in the parent.

Groups are made below the caller's own group only (cgroups(7)). The worker joins by itself, as its
first act, through ``join_fds``; the parent, which never trusts it, writes the limits, reads the
usage, and kills. The zygote's import of this file must stay cheap: no torch, no psutil.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import time
from typing import TYPE_CHECKING

from sandbox.layers.cgroup_find import CgroupUnavailable, Directory, counters
from sandbox.layers.cgroup_host import CgroupHost, enter, forget, leave, release, unavailable
from sandbox.layers.cgroup_leaf import PREFIX, cleanup_leaf

if TYPE_CHECKING:
    from sandbox.isolation import Layer
    from sandbox.limits import Limits

__all__ = ["CgroupUnavailable", "Group", "cleanup_leaf", "release"]

_REMOVE_SECONDS = 2.0
_GONE = (errno.ENOENT, errno.ENODEV)


class Group:
    """One worker's group: `plan` it, `make` it, and end it with `remove` and `close`.

    A plan takes no time, and names the group: its worker is cloned while it is made.
    """

    layer: Layer
    has_memory: bool
    join_fds: list[int]  # open cgroup.procs or tasks files: who writes b"0" to each of them joins
    dirs: list[tuple[int, str]]  # (descriptor of the folder above, name), for unlinkat(2)

    def __init__(self, host: CgroupHost, name: str) -> None:
        self._host = host
        self._parts: list[Directory] = []
        self._by: dict[str, Directory] = {}  # controller → its folder
        self._peak = 0
        self._cpu = 0.0
        self._oom = False
        self._entered = True
        self.join_fds = []
        self.dirs = [(base.fd, name) for base, _ in host.bases]

    @classmethod
    def plan(cls) -> Group:
        """A group that is still to be made. Raises CgroupUnavailable(cause, remedy)."""
        host = enter()
        return cls(host, f"{PREFIX}{host.caller}-{secrets.token_hex(4)}")

    def make(self, limits: Limits) -> Group:
        """Make it, with these limits. Raises CgroupUnavailable(cause, remedy).

        Returns another one where the caller was moved since the place was found, or its
        controllers were switched off: then the place is found anew."""
        try:
            return self._make(limits)
        except OSError as error:
            if error.errno not in _GONE:
                raise unavailable(error) from error
        forget(self._host)
        try:
            return self.plan()._make(limits)
        except OSError as error:
            raise unavailable(error) from error

    def _make(self, limits: Limits) -> Group:
        # v1: a worker joins while it has one thread. To move a thread takes 0.06 ms; to move a
        # process, a grace period of the kernel: 9 to 15 ms.
        joins = "tasks" if self._host.version == 1 else "cgroup.procs"
        try:
            for (above, name), (_, controllers) in zip(self.dirs, self._host.bases, strict=True):
                os.mkdir(name, 0o755, dir_fd=above)
                part = Directory.open(name, dir_fd=above)
                self._parts.append(part)
                self._by.update(dict.fromkeys(controllers, part))
                flags = os.O_WRONLY | os.O_CLOEXEC
                self.join_fds.append(os.open(joins, flags, dir_fd=part.fd))
            swap = self.apply(limits)
            self.has_memory = "memory" in self._by
            self.layer = self._host.layer(swap)
        except BaseException:
            self.remove()
            self.close()
            raise
        return self

    def apply(self, limits: Limits) -> bool:
        """Write the limits; a spare's group gets its request's ones so. True if swap is bounded."""
        swap = False
        if "memory" in self._by and limits.memory is not None:
            write = self._memory_v2 if self._host.version == 2 else self._memory_v1
            swap = write(self._by["memory"], limits.memory)
        if "pids" in self._by and limits.processes is not None:
            self._by["pids"].write("pids.max", str(limits.processes))
        return swap

    @staticmethod
    def _memory_v2(group: Directory, limit: int) -> bool:
        group.write("memory.max", str(limit))
        group.write("memory.oom.group", "1")
        try:
            group.write("memory.swap.max", "0")
        except FileNotFoundError:  # a kernel or a boot without swap accounting
            return not _host_swaps()
        return True

    @staticmethod
    def _memory_v1(group: Directory, limit: int) -> bool:
        """Memory, and memory plus swap: the second must never be below the first."""
        files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        swap = True
        try:
            before = int(group.read(files[1]))
        except FileNotFoundError:
            swap = not _host_swaps()
            files.pop()
            before = 0
        if limit > before:
            files.reverse()
        for name in files:
            group.write(name, str(limit))
        if counters(group.read_or("memory.oom_control", "")).get("oom_kill_disable"):
            group.write("memory.oom_control", "0")
        return swap

    def usage(self) -> tuple[int, float]:
        """Peak memory in bytes and CPU time in seconds, of all who were ever in the group.

        Keeps the last figures once the group is removed. Without memory.peak (kernels below 5.19)
        the peak is the highest figure that a call of this method has seen.
        """
        memory = self._by.get("memory")
        if memory is not None:
            names = ("memory.peak", "memory.current")
            if self._host.version == 1:
                names = ("memory.memsw.max_usage_in_bytes", "memory.max_usage_in_bytes")
            for name in names:
                text = memory.read_or(name, "")
                if text:
                    self._peak = max(self._peak, int(text))
                    break
        if self._host.version == 2 and self._parts:
            stat = counters(self._parts[0].read_or("cpu.stat", ""))
            self._cpu = max(self._cpu, stat.get("usage_usec", 0) / 1e6)
        elif "cpuacct" in self._by:
            text = self._by["cpuacct"].read_or("cpuacct.usage", "0")
            self._cpu = max(self._cpu, int(text) / 1e9)
        return self._peak, self._cpu

    def oom_killed(self) -> bool:
        """Whether the kernel killed somebody in here for going over the memory limit."""
        memory = self._by.get("memory")
        if memory is not None and not self._oom:
            name = "memory.events" if self._host.version == 2 else "memory.oom_control"
            self._oom = counters(memory.read_or(name, "")).get("oom_kill", 0) > 0
        return self._oom

    def kill(self) -> None:
        """SIGKILL to all in the group; those who fork meanwhile too (cgroup.kill: Linux 5.14)."""
        for part in self._parts:
            try:
                part.write("cgroup.kill", "1")
                return
            except OSError:
                for _ in range(10):
                    try:
                        pids = part.pids()
                    except OSError:
                        break  # removed already
                    for pid in pids:
                        if pid > 0:
                            with contextlib.suppress(ProcessLookupError, PermissionError):
                                os.kill(pid, signal.SIGKILL)
                    if not pids:
                        break

    def remove(self, timeout: float = _REMOVE_SECONDS) -> bool:
        """Kill, wait for at most ``timeout`` seconds, remove. False if something still lives."""
        self.usage()
        self.oom_killed()
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while True:
            self.dirs = [(fd, name) for fd, name in self.dirs if not _rmdir(fd, name)]
            if not self.dirs:
                if self._entered:
                    self._entered = False
                    leave(self._host)
                return True
            if time.monotonic() >= deadline:
                return False
            self.kill()
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def close(self) -> None:
        """Close the descriptors; the group itself stays until it is removed."""
        for fd in self.join_fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.join_fds.clear()
        for part in self._parts:
            part.close()
        self._parts.clear()
        self._by.clear()


def _rmdir(dir_fd: int, name: str) -> bool:
    """Whether the group is gone."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _host_swaps() -> bool:
    with contextlib.suppress(OSError), open("/proc/swaps", encoding="ascii") as swaps:
        return len(swaps.readlines()) > 1
    return True
