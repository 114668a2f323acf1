"""Every value constructor, by the name that files use for it."""

from __future__ import annotations

from .arrays import ARRAYS
from .base import Maker
from .indirect import INDIRECT
from .layouts import LAYOUTS
from .standard import STANDARD
from .tensors import TENSORS

MAKERS: dict[str, Maker] = {**STANDARD, **ARRAYS, **TENSORS, **LAYOUTS, **INDIRECT}
