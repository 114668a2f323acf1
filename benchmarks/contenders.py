"""What a user would load a checkpoint with, each as one call from path to object."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing
from safetensors.torch import load_file

import isoload

from .files import GB, File

Load = Callable[[File], Any]

SPARE_READY = 0.15
"""Seconds in which a spare worker surely gets ready."""

QUIET = 0.05
"""Seconds in which what the contender before has left behind is done: a worker is buried, the next
spare is made."""


@dataclass(frozen=True)
class Contender:
    """`load` gives the object; `takes` says which files it opens; `slow`: a new interpreter each
    time, so fewer rounds; `rest`: seconds before it, as a program has them between two loads."""

    name: str
    load: Load
    takes: Callable[[File], bool] = lambda file: True
    slow: bool = False
    rest: float = QUIET


def _torch_load(file: File) -> Any:
    return torch.load(file.path, weights_only=not file.module)


def _torch_mmap(file: File) -> Any:
    return torch.load(file.path, weights_only=not file.module, mmap=True)


def _by_hand(file: File) -> Any:
    """A worker as people write it: spawn, torch.load, share_memory, queue."""
    context = torch.multiprocessing.get_context("spawn")
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=_feed, args=(str(file.path), queue, back))
    process.start()
    loaded = queue.get()
    back.put(None)
    process.join()
    return loaded


def _feed(path: str, queue: Any, back: Any) -> None:
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    loaded = torch.load(path)
    for tensor in loaded.values():
        tensor.share_memory_()
    queue.put(loaded)
    back.get()  # the segments live as long as this process


_IN_BWRAP = """
import sys, torch
from safetensors.torch import save_file
save_file(dict(torch.load(sys.argv[1])), sys.argv[2])
"""


def _by_bwrap(file: File) -> Any:
    """bwrap around a fresh Python that converts to safetensors in a shared folder."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        out = os.path.join(folder, "out.safetensors")
        command = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--bind", folder, folder]
        command += ["--setenv", "TMPDIR", folder, "--unshare-all", "--die-with-parent"]
        command += [sys.executable, "-c", _IN_BWRAP]
        subprocess.run([*command, str(file.path), out], check=True)
        return load_file(out)


_COLD = """
import json, sys, time
started = time.perf_counter()
import torch
imported = time.perf_counter()
import isoload
ready = time.perf_counter()
loaded = isoload.load(sys.argv[1])
done = time.perf_counter()
print(json.dumps([imported - started, ready - imported, done - ready]))
"""


def cold(file: File) -> dict[str, float]:
    """Seconds in a new process: import of torch, then of isoload, then the first load."""
    command = [sys.executable, "-c", _COLD, str(file.path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = ("import torch", "import isoload", "first load")
    return dict(zip(names, json.loads(out), strict=True))


def _in_a_process(file: File) -> bool:
    return file.flat and file.nbytes <= GB and file.tensors <= 1_000


@contextmanager
def contenders() -> Iterator[list[Contender]]:
    """All of them, ready: the loaders' zygotes run. What is not installed is said on stderr."""
    with ExitStack() as stack:
        warm = stack.enter_context(isoload.Loader(spares=0))
        spare = stack.enter_context(isoload.Loader(spares=1))
        found = [
            Contender("torch.load", _torch_load),
            Contender("torch.load mmap", _torch_mmap, lambda file: not file.legacy),
            Contender("safetensors", lambda file: load_file(file.safetensors), lambda f: f.flat),
            Contender("isoload", lambda file: warm.load(file.path)),
            Contender("isoload spare", lambda file: spare.load(file.path), rest=SPARE_READY),
            Contender(
                "isoload mmap",
                lambda file: warm.load(file.path, mmap=True),
                lambda file: not file.legacy,
            ),
            Contender(
                "isoload spare mmap",
                lambda file: spare.load(file.path, mmap=True),
                lambda file: not file.legacy,
                rest=SPARE_READY,
            ),
            Contender("worker by hand", _by_hand, _in_a_process, slow=True),
        ]
        if shutil.which("bwrap"):
            found.append(Contender("bwrap", _by_bwrap, _in_a_process, slow=True))
        else:
            print("bwrap is not installed: left out", file=sys.stderr)
        yield found
