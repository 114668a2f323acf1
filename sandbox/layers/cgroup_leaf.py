"""Make the caller's own cgroup v2 group able to have limited subgroups, and put it back afterwards.

A v2 group that holds processes cannot hand controllers to its subgroups ("no internal processes",
cgroups(7)). So the caller and its descendants move into a leaf below their own group:

    own group ─┬ isoload-caller-NS-PID   the caller, its zygote, its sentinel
               └ isoload-NS-PID-xxxx     a worker

Nothing above the group that was given to the caller is touched, and no process is moved that does
not descend from the caller.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from sandbox.layers.cgroup_find import CONTROLLERS, CgroupUnavailable, Directory, places

PREFIX = "isoload-"
LEAF_PREFIX = PREFIX + "caller-"
_ROUNDS = 10  # a descendant may fork while it is being moved
_RELEASE_SECONDS = 1.0
_CLEANUP_SECONDS = 5.0  # a killed caller with much memory takes its time to die
_PAUSE = 0.01  # seconds
_PF_EXITING = 0x4  # linux/sched.h; flags in proc_pid_stat(5)

OTHERS_REMEDY = (
    "start the program in a group of its own: "
    "systemd-run --user --scope -p Delegate=yes -- python your_program.py; "
    "in a systemd service, set Delegate=yes and DelegateSubgroup=main"
)


class Base:
    """The v2 group below which workers' groups are made, with its controllers switched on."""

    def __init__(self, path: str) -> None:
        self.path = _base_path(path)
        self.directory = Directory.open(self.path)
        self._leaf = ""
        self._enabled: frozenset[str] = frozenset()
        try:
            with _locked(self.directory):
                self._enable()
        except BaseException:
            self.directory.close()
            raise

    @property
    def controllers(self) -> frozenset[str]:
        """What the subgroups of this group can be limited by."""
        names = self.directory.read_or("cgroup.subtree_control", "").split()
        return frozenset(names) & frozenset(CONTROLLERS)

    def _enable(self) -> None:
        offered = frozenset(self.directory.read("cgroup.controllers").split())
        wanted = (offered & frozenset(CONTROLLERS)) - self.controllers
        if not wanted:
            return
        try:
            _switch(self.directory, "+", wanted)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            self._move_to_leaf()
            try:
                _switch(self.directory, "+", wanted)
            except OSError:
                _dissolve(self.directory, self._leaf, _RELEASE_SECONDS)
                raise
        self._enabled = wanted

    def _move_to_leaf(self) -> None:
        others = [pid for pid in self.directory.pids() if not _descends(pid, os.getpid())]
        if others:
            raise CgroupUnavailable(
                f"other processes live in this program's own cgroup {self.path} "
                f"({_describe(others)}), so it can have no limited subgroups",
                OTHERS_REMEDY,
            )
        self._leaf = LEAF_PREFIX + caller_id()
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._leaf, 0o755, dir_fd=self.directory.fd)
        for _ in range(_ROUNDS):
            pids = self.directory.pids()
            if not pids:
                return
            for pid in pids:
                _move(self.directory, f"{self._leaf}/cgroup.procs", pid)
        _dissolve(self.directory, self._leaf, _RELEASE_SECONDS)
        raise CgroupUnavailable(
            f"new processes keep appearing in this program's own cgroup {self.path}",
            OTHERS_REMEDY,
        )

    def release(self) -> bool:
        """Switch the controllers off again and move the caller back, unless groups are in use."""
        with _locked(self.directory):
            if set(self.directory.subgroups()) - {self._leaf}:
                return False
            _undo(self.directory, self._leaf, self._enabled, _RELEASE_SECONDS)
        self.directory.close()
        return True


def cleanup_leaf() -> None:
    """Undo what a caller that was killed has left; the zygote calls it as the last thing it does.

    Does nothing while that caller lives, or where there is no such leaf.
    """
    for place in places():
        above, name = os.path.split(place.path)
        if place.version != 2 or not name.startswith(LEAF_PREFIX):
            continue
        if not _is_dying(int(name.rpartition("-")[2])):
            continue
        base = Directory.open(above)
        try:
            with _locked(base):
                _undo(base, name, frozenset(CONTROLLERS), _CLEANUP_SECONDS)
        finally:
            base.close()


def sweep(base: Directory) -> None:
    """Remove empty groups whose caller is dead (killed together with all who clean up after it)."""
    space, _, _ = caller_id().partition("-")
    for name in base.subgroups():
        words = name.removeprefix(LEAF_PREFIX).removeprefix(PREFIX).split("-")
        if (
            name.startswith(PREFIX)
            and len(words) >= 2
            and words[0] == space
            and not os.path.exists(f"/proc/{words[1]}")
        ):
            base.remove(name)


def caller_id() -> str:
    """``NS-PID``: this process with the pid namespace in which its pid counts."""
    return os.readlink("/proc/self/ns/pid").strip("pid:[]") + f"-{os.getpid()}"


def _base_path(own: str) -> str:
    """The own group; or the one above, where the own one is but the leaf of a delegated group.

    Such a leaf is this module's own (the caller was forked off one that moved), or systemd's by
    DelegateSubgroup=, which marks the group above with the xattr user.delegate (systemd.resource-
    control(5)).
    """
    above, name = os.path.split(own)
    if name.startswith(LEAF_PREFIX):
        return above
    with contextlib.suppress(OSError):
        if os.getxattr(above, "user.delegate") == b"1" and os.access(
            above + "/cgroup.subtree_control", os.W_OK
        ):
            directory = Directory.open(above)
            empty = not directory.pids()
            directory.close()
            if empty:
                return above
    return own


@contextlib.contextmanager
def _locked(directory: Directory) -> Iterator[None]:
    """One caller at a time switches the controllers of a group on or off."""
    fcntl.flock(directory.fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(directory.fd, fcntl.LOCK_UN)


def _switch(directory: Directory, sign: str, controllers: frozenset[str]) -> None:
    text = " ".join(sign + name for name in sorted(controllers))
    directory.write("cgroup.subtree_control", text)


def _undo(base: Directory, leaf: str, controllers: frozenset[str], seconds: float) -> None:
    on = frozenset(base.read_or("cgroup.subtree_control", "").split())
    with contextlib.suppress(OSError):
        _switch(base, "-", controllers & on)
    if leaf:
        _dissolve(base, leaf, seconds)


def _dissolve(base: Directory, leaf: str, seconds: float) -> None:
    """Move what lives in the leaf one up and remove it, once those who are dying there are dead."""
    with contextlib.suppress(OSError):
        directory = Directory.open(leaf, dir_fd=base.fd)
        deadline = time.monotonic() + seconds
        try:
            while True:
                for pid in directory.pids():
                    _move(base, "cgroup.procs", pid)
                if base.remove(leaf) or time.monotonic() > deadline:
                    break
                time.sleep(_PAUSE)
        finally:
            directory.close()


def _is_dying(pid: int) -> bool:
    """Gone, a zombie, or on its way: a process closes its files before it leaves its group."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING)


def _move(base: Directory, procs: str, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        base.write(procs, str(pid))


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False
        pid = int(stat.rpartition(b")")[2].split()[1])
    return pid == ancestor


def _describe(pids: list[int]) -> str:
    named = []
    for pid in pids[:4]:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
            named.append(f"{command if command.isprintable() else '?'}[{pid}]")
    rest = len(pids) - len(named)
    return (
        ", ".join(named + ([f"{rest} more"] if rest and named else [])) or "not visible from here"
    )
