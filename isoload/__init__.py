"""isoload: open any PyTorch checkpoint in a confined worker process, get tensors and plain data
back.

    model = isoload.load("upload.pt", "cuda:0")

The caller's process never unpickles anything. The public names are those in `__all__`, and nothing
else. Each is imported when it is first asked for: a worker imports modules of this package, and
not the caller's half of it, nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    **dict.fromkeys(("inspect", "load", "open", "state_dict", "warm_up"), "isoload.default"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "isoload.errors"),
    **dict.fromkeys(("Loaded", "Loader"), "isoload.loader"),
    "Limits": "sandbox",
    "Opaque": "isoload.opaque",
    "Policy": "isoload.policy",
    "Report": "isoload.report",
}


def __getattr__(name: str) -> Any:  # PEP 562
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
