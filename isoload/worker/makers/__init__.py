"""The table of value constructors: what the inert reader makes for real when a file asks for it by
name.

Each one checks the types and bounds of its arguments and then makes a plain value by itself. None
of them calls anything that came from the file. What they do not take (`Decline`) is recorded like
any other class.
"""

from __future__ import annotations

from .arrays import ARRAYS
from .base import Decline, Maker, Owner
from .indirect import INDIRECT
from .layouts import LAYOUTS
from .standard import STANDARD
from .tensors import TENSORS

MAKERS: dict[str, Maker] = {**STANDARD, **ARRAYS, **TENSORS, **LAYOUTS, **INDIRECT}

__all__ = ["MAKERS", "Decline", "Maker", "Owner"]
