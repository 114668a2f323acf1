"""Run a Python function in a confined process of its own. It knows of no model and no pickle.

    with Sandbox(preload=["package.module"]) as sandbox:
        reply = sandbox.run("package.module:function", b"request", fds=[fd])

The function takes (request: bytes, fds: list[int]) and returns (bytes, list of descriptors).
Linux only. These are the public names; everything else may change.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError(
        "isoload and its sandbox confine by mechanisms of the Linux kernel, and this is Windows: "
        "use them within WSL 2"
    )

from sandbox.errors import (
    ClosedError,
    IsolationError,
    LimitError,
    SandboxError,
    WorkerError,
    printable,
)
from sandbox.isolation import DEFAULT_REQUIRED, LAYERS, Isolation, Layer, State
from sandbox.limits import Limits
from sandbox.memfd import check_segment, create_memfd, map_segment, seal
from sandbox.probe import probe
from sandbox.reply import Reply, Usage

if TYPE_CHECKING:
    from sandbox.sandbox import Sandbox
    from sandbox.slots import Reservation

__all__ = [
    "DEFAULT_REQUIRED",
    "LAYERS",
    "ClosedError",
    "Isolation",
    "IsolationError",
    "Layer",
    "LimitError",
    "Limits",
    "Reply",
    "Reservation",
    "Sandbox",
    "SandboxError",
    "State",
    "Usage",
    "WorkerError",
    "check_segment",
    "create_memfd",
    "map_segment",
    "printable",
    "probe",
    "seal",
]


# Imported where they are asked for: a zygote imports this package too, and has no use for them.
_LATE = {"Reservation": "sandbox.slots", "Sandbox": "sandbox.sandbox"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)
