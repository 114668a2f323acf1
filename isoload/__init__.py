"""isoload: open any PyTorch checkpoint in a confined worker process, get tensors and plain data
back.

    model = isoload.load("upload.pt", "cuda:0")

The caller's process never unpickles anything. The public names are those in `__all__`, and nothing
else.
"""

from __future__ import annotations

from sandbox import Limits

from .default import inspect, load, open, state_dict, warm_up
from .errors import (
    CheckpointError,
    IntegrityError,
    InternalError,
    IsolationError,
    IsoloadError,
    LimitError,
    RefusedError,
    WorkerError,
)
from .loader import Loaded, Loader
from .opaque import Opaque
from .policy import Policy
from .report import Report

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "IntegrityError",
    "InternalError",
    "IsolationError",
    "IsoloadError",
    "LimitError",
    "Limits",
    "Loaded",
    "Loader",
    "Opaque",
    "Policy",
    "RefusedError",
    "Report",
    "WorkerError",
    "inspect",
    "load",
    "open",
    "state_dict",
    "warm_up",
]
