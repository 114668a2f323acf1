"""The parent's handle on its zygote: start it by exec, give it orders, know when it is gone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from multiprocess.connection import Connection

from sandbox import channel, forks, imports, memfd
from sandbox.errors import SandboxError, printable

START_SECONDS = 180.0  # a cold import of torch from a slow disk takes a minute
_STOP_SECONDS = 1.0
_ANSWER_LIMIT = 1 << 20  # bytes
_LAST_WORDS = 2000  # bytes of a dead zygote's stderr

# In isolated mode nothing of the caller's path is there yet: the package is loaded from its own
# folder, whatever else of that name the interpreter could find. Before that, so that a zygote whose
# parent dies does not first finish its imports: SIGIO where the control socket ends. fcntl(2)
# All of pyroute2 takes 0.1 s to import, of which the messages that `network` needs are a twentieth.
# The collector would walk all that is imported many times, to find next to nothing. dill asks for
# the folder of temporary files, which Python finds by writing to it: it is told one.
_BOOT = """
import fcntl, gc, os, select, signal, sys, tempfile
gc.disable()
tempfile.tempdir = "/tmp"
from importlib.util import module_from_spec, spec_from_file_location
folder, fd = sys.argv[1], int(sys.argv[2])
sys.path += [path for path in sys.argv[3:] if path not in sys.path]
poll = select.poll()
poll.register(fd, select.POLLRDHUP)
def look(*_):
    if poll.poll(0):
        os._exit(1)
signal.signal(signal.SIGIO, look)
fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
look()
spec = spec_from_file_location(
    "sandbox", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["sandbox"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
from sandbox.imports import import_parts
import_parts("pyroute2", "sandbox.layers.network")
from sandbox.zygote import main
main(fd)
"""

# What this package itself imports: in the caller's own folders where Python is the system's.
_NEEDED = ("dill", "multiprocess", "psutil", "pyroute2")

# All that a zygote gets of the caller's environment: how to find shared libraries, and the test
# suite's switch.
_PASSED_ON = ("LD_LIBRARY_PATH", "ISOLOAD_TESTS_LANDLOCK_ABI")
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "TMPDIR": "/tmp",
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def _bytecode() -> list[str]:
    """Where compiled modules are kept, as in this process: isolated mode has no environment."""
    if sys.dont_write_bytecode:
        return ["-B"]
    return [] if sys.pycache_prefix is None else ["-X", f"pycache_prefix={sys.pycache_prefix}"]


class ZygoteGone(Exception):
    """The zygote took no order: it has died."""


@dataclass(frozen=True)
class Recipe:
    """What a zygote imports, and what it does before it serves: see `Sandbox`."""

    preload: tuple[str, ...] = ()
    warm_up: str | None = None
    warm_up_data: bytes | None = None
    rehearsal: str | None = None
    reopens: bool = True


class Zygote:
    """A started zygote; `ready` waits until it serves."""

    def __init__(self, recipe: Recipe) -> None:
        if not sys.executable:
            raise SandboxError("sys.executable is empty: no Python to start a clean zygote with")
        self._lock = threading.Lock()
        self._ready = threading.Lock()
        self._served = False
        self._failure = ""
        package = os.path.dirname(os.path.abspath(__file__))
        with forks.creating, _lent(recipe.warm_up_data) as data:
            self._sock, theirs = _above_standard_streams(socket.socketpair())
            self._control = Connection(os.dup(self._sock.fileno()))
            self._errors = memfd.create_memfd("zygote-stderr")
            command = [sys.executable, "-I", *_bytecode(), "-c", _BOOT, package]
            command.append(str(theirs.fileno()))
            command += sorted(set(imports.folders_of(_NEEDED).values()))
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    env={k: os.environ[k] for k in _PASSED_ON if k in os.environ} | _ENVIRONMENT,
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                self._close_descriptors()
                raise SandboxError(
                    f"cannot start a zygote with {sys.executable}: {error}"
                ) from error
            finally:
                theirs.close()
            forks.register(self)
            with contextlib.suppress(OSError):  # it died at once: `ready` finds out why
                self._send(_first_order(recipe), data)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def served(self) -> bool:
        """Has `ready` ever returned? One that never came up is not tried again."""
        return self._served

    def ready(self) -> None:
        """Wait until it serves. SandboxError with its last words where it does not."""
        with self._ready:
            if self._failure:
                raise SandboxError(self._failure)
            if self._served:
                return
            try:
                if not self._control.poll(START_SECONDS):
                    raise EOFError
                answer: dict[str, Any] = json.loads(self._control.recv_bytes(_ANSWER_LIMIT))
            except (EOFError, OSError, ValueError):
                answer = {"failed": f"it ended at once: {self._words()}"}
            if "failed" in answer:
                words = printable(str(answer["failed"])[-_LAST_WORDS:], _LAST_WORDS * 2)
                self._failure = f"the zygote could not start: {words}"
                raise SandboxError(self._failure)
            self._served = True

    def order(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        """Have one worker forked. ZygoteGone where there is nobody to do it."""
        with self._lock:
            try:
                self._send(message, fds)
            except OSError as error:
                raise ZygoteGone(self.death()) from error

    def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        self._control.send_bytes(json.dumps(message | {"fds": len(fds)}).encode())
        socket.send_fds(self._sock, [b"\0"], list(fds))

    def gone(self) -> bool:
        return self._process.poll() is not None

    def await_end(self) -> None:
        """Where it is dying, until it is dead: its descriptors are closed a little before that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_STOP_SECONDS)

    def death(self) -> str:
        """How it ended, in words."""
        self.await_end()
        return f"exit status {self._process.returncode}; {self._words()}"

    def stop(self) -> None:
        """Ask it to go by ending the control socket; kill it where it does not."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes who waits in `ready`
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._ready, self._lock:
            self._close_descriptors()

    def after_fork_in_child(self) -> None:
        """This zygote is the parent's."""
        self._lock, self._ready = threading.Lock(), threading.Lock()
        self._close_descriptors()
        self._process.returncode = 0  # not ours to wait for

    def _close_descriptors(self) -> None:
        self._control.close()
        self._sock.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    def _words(self) -> str:
        if self._errors < 0:
            return ""
        size = os.fstat(self._errors).st_size
        tail = os.pread(self._errors, _LAST_WORDS, max(0, size - _LAST_WORDS))
        return printable(tail.decode("utf-8", "replace").strip())


def _first_order(recipe: Recipe) -> dict[str, Any]:
    called = [name.partition(":")[0] for name in (recipe.warm_up, recipe.rehearsal) if name]
    return {
        "folders": imports.folders_of([*recipe.preload, *called, "sandbox"]),
        "preload": recipe.preload,
        "warm_up": recipe.warm_up,
        "rehearsal": recipe.rehearsal,
        "reopens": recipe.reopens,
    }


@contextlib.contextmanager
def _lent(data: bytes | None) -> Iterator[list[int]]:
    """A descriptor of the data; none where there is none.

    Not in the order: a socket holds some two hundred KB, and who sends more waits for a zygote that
    is still on its way, or stopped.
    """
    fds = [] if data is None else [memfd.create_filled("zygote-warm-up", data)]
    try:
        yield fds
    finally:
        channel.close_all(fds)


def _above_standard_streams(
    pair: tuple[socket.socket, socket.socket],
) -> tuple[socket.socket, socket.socket]:
    """Where the caller has closed a standard stream, a new descriptor takes its number, and the
    zygote's own standard streams would be put in its place."""
    ours, theirs = pair
    moved = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3))
    theirs.close()
    return ours, moved
