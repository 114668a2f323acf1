"""The module-level calls, and the one Loader that they share.

It starts at the first use and is closed at exit. After a fork the child's first call starts its
own: the sandbox lets go of what it inherited.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

import torch

from .loader import Loaded, Loader
from .placement import Device
from .policy import Policy
from .report import Report
from .source import SourceLike

_lock = threading.Lock()
_loader: Loader | None = None


def _default() -> Loader:
    global _loader
    with _lock:
        if _loader is None:
            _loader = Loader(_ahead=False)  # most files need no worker with torch
            atexit.register(_loader.close)
        return _loader


def _renew_lock() -> None:
    # The lock may be held by a thread that the child does not have.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def warm_up() -> None:
    """Start ahead of the first load what it needs, without waiting for it."""
    _default()._warm_up()


def load(
    f: SourceLike,
    device: Device = None,
    *,
    mmap: bool = False,
    sha256: str | None = None,
    policy: Policy | None = None,
) -> Any:
    """Open a checkpoint in a confined worker and return the object that it holds.

    f: a path, a binary file object (read from its current position) or bytes.
    device: what torch.load takes as `map_location`: None (the saved device), a str, torch.device,
        dict or callable. Tensors are placed in this process only; the worker sees no device.
    mmap: False: a private snapshot, the file may change or vanish afterwards. True: the tensors
        lie on the file itself, copy on write, as with torch.load(mmap=True); it needs a path.
    sha256: the hex digest that the bytes must have.
    policy: default `Policy.third_party()`.

    Containers, scalars and tensors come back as torch.load gives them. An object of any other class
    comes back as an `Opaque`, which holds its state and runs nothing.

    Raises OSError for a path that cannot be read, TypeError or ValueError for a wrong argument, and
    an IsoloadError for all else: see `isoload.errors`.
    """
    return _default().load(f, device, mmap=mmap, sha256=sha256, policy=policy)


def open(
    f: SourceLike,
    device: Device = None,
    *,
    mmap: bool = False,
    sha256: str | None = None,
    policy: Policy | None = None,
) -> Loaded:
    """As `load`, with the report: `.object` and `.report`."""
    return _default().open(f, device, mmap=mmap, sha256=sha256, policy=policy)


def inspect(f: SourceLike, *, sha256: str | None = None, policy: Policy | None = None) -> Report:
    """What the file is, holds and asks for. No byte of a tensor reaches this process.

    Raises as `load` does.
    """
    return _default().inspect(f, sha256=sha256, policy=policy)


def state_dict(
    f: SourceLike,
    device: Device = None,
    *,
    key: str | None = None,
    mmap: bool = False,
    sha256: str | None = None,
    policy: Policy | None = None,
) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint as a flat dict of name to tensor.

    That is the object itself, or what it holds under `key`, or under one of the usual keys
    (state_dict, model_state_dict, model, module, ema, …), or the parameters and buffers of a
    pickled nn.Module. Tied weights stay tied.

    Raises as `load` does, and CheckpointError where there is no state dict, or more than one: the
    message lists the candidates for `key`.
    """
    return _default().state_dict(f, device, key=key, mmap=mmap, sha256=sha256, policy=policy)
