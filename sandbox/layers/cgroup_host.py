"""Where this process can make cgroups: found once, kept, and put back as it was at the end.

One ``CgroupHost`` a process; a forked child finds its own. No group is made here.
"""

from __future__ import annotations

import atexit
import errno
import os
import threading
import time

from sandbox.causes import explain
from sandbox.isolation import Layer, State
from sandbox.layers.cgroup_find import CgroupUnavailable, Directory, Place, places
from sandbox.layers.cgroup_leaf import PREFIX, Base, caller_id, sweep


class CgroupHost:
    """Where this process can make groups, found once and kept."""

    def __init__(self) -> None:
        found = places()
        unified = [place for place in found if place.version == 2]
        single = [place for place in found if place.version == 1]
        self.caller = caller_id()
        self.groups = 0
        self.base: Base | None = None
        self.bases: list[tuple[Directory, frozenset[str]]] = []
        if unified and (not single or "memory" in unified[0].controllers):
            self.version = 2
            self.path = unified[0].path
            self._find_v2()
        elif single:
            self.version = 1
            self.path = single[0].path
            self._find_v1(single)
        else:
            raise unavailable(FileNotFoundError(errno.ENOENT, ""))
        self.controllers = frozenset().union(*(names for _, names in self.bases))
        if not self.controllers:
            self.close()
            raise CgroupUnavailable(
                f"no controller is handed to this program's own cgroup {self.path}",
                _DELEGATE_REMEDY,
            )
        for directory, _ in self.bases:
            sweep(directory)

    def _find_v2(self) -> None:
        try:
            self.base = Base(self.path)
        except OSError as error:
            raise unavailable(error) from error
        self.path = self.base.path
        self.bases = [(self.base.directory, self.base.controllers)]

    def _find_v1(self, found: list[Place]) -> None:
        folders: dict[str, frozenset[str]] = {}
        for place in found:
            folders[place.path] = folders.get(place.path, frozenset()) | place.controllers
        refused: OSError | None = None
        for path, controllers in folders.items():
            probe = f"{path}/{PREFIX}{self.caller}-probe"
            try:
                os.mkdir(probe)
                os.rmdir(probe)
                self.bases.append((Directory.open(path), controllers))
            except OSError as error:
                refused = refused or error
        if refused is not None and not self.bases:
            raise unavailable(refused) from refused

    def layer(self, swap: bool) -> Layer:
        """The layer as a group made here has it."""
        held: list[str] = [name for name in ("memory", "pids", "cpu") if name in self.controllers]
        lacks: list[str] = [
            name for name in ("memory", "pids", "cpu") if name not in self.controllers
        ]
        if "memory" in held:
            (held if swap else lacks).insert(1, "swap")
        mechanism = f"cgroup v{self.version}: {', '.join(held)}"
        if not lacks:
            return Layer("cgroup", State.ENFORCED, mechanism)
        remedy = _SWAP_REMEDY if lacks == ["swap"] else _DELEGATE_REMEDY
        cause = f"{', '.join(lacks)} cannot be limited in {self.path}"
        return Layer("cgroup", State.PARTIAL, mechanism, cause, remedy)

    def close(self) -> None:
        for directory, _ in self.bases:
            directory.close()


_DELEGATE_REMEDY = (
    "have the controllers delegated: systemctl edit user@.service, add "
    "[Service] Delegate=cpu memory pids, log in again; in a system service, Delegate=yes"
)
_SWAP_REMEDY = "boot with swapaccount=1, or turn swap off (swapoff -a)"
_FAILURE_SECONDS = 10.0

_lock = threading.RLock()
_host: CgroupHost | None = None
_failure: tuple[float, CgroupUnavailable] | None = None
_exiting = False


def enter() -> CgroupHost:
    """The host, held open for one more group until :func:`leave`. Raises CgroupUnavailable."""
    global _host, _failure
    with _lock:
        if _host is None:
            if _failure is not None and time.monotonic() < _failure[0]:
                raise CgroupUnavailable(_failure[1].cause, _failure[1].remedy)
            try:
                _host = CgroupHost()
            except CgroupUnavailable as error:
                _failure = (time.monotonic() + _FAILURE_SECONDS, error)
                raise
        _host.groups += 1
        return _host


def leave(host: CgroupHost) -> None:
    """One group less: the last one closes what nobody needs any more."""
    with _lock:
        host.groups -= 1
        if host.groups == 0:
            if host is not _host:
                host.close()
            elif _exiting:
                _end(host)


def forget(host: CgroupHost) -> None:
    """Find the host anew at the next :func:`enter`; groups made in this one keep it open."""
    global _host
    with _lock:
        if host is _host:
            _host = None
            if host.groups == 0:
                host.close()


def release() -> bool:
    """Put the caller's own group back as it was found; True where that is done.

    Refused while a group of this process, or of another in the same place, is still there. At the
    interpreter's exit it happens by itself, after the last group has been removed.
    """
    with _lock:
        return _host is None or (_host.groups == 0 and _end(_host))


def _end(host: CgroupHost) -> bool:
    if host.base is not None and not host.base.release():
        return False
    forget(host)
    return True


def _at_exit() -> None:
    global _exiting
    _exiting = True
    release()


def _after_fork() -> None:
    """The parent's groups are not the child's, and the lock may have been held by a thread."""
    global _lock, _host, _failure, _exiting
    _lock = threading.RLock()
    _host, _failure, _exiting = None, None, False


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)


def unavailable(error: OSError) -> CgroupUnavailable:
    return CgroupUnavailable(*explain("cgroup", "making a cgroup", error.errno or 0))
