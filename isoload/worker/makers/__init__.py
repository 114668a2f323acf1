"""Value constructors: what the inert reader makes for real when a file asks for it by name.

Each one checks the types and bounds of its arguments and then makes a plain value by itself. None
of them calls anything that came from the file. What they do not take (`Decline`) is recorded like
any other class.

    table       all of them, with torch's: for a worker that has it
    views       those for a file whose tensors are not made
"""

from __future__ import annotations

from .base import Decline, Maker, Owner

__all__ = ["Decline", "Maker", "Owner"]
