"""What both sides hold a graph against: the worker so as not to send what the parent, in
`isoload.check`, would refuse.
"""

from __future__ import annotations

import functools

MAX_DIMS = 256
MAX_INT = 2**63 - 1
MAX_TEXT = 300
"""Characters of a location tag: it ends up in messages."""
MAX_NAME = 2000
"""Characters of a class's name."""
MAX_BIG_INT = 1 << 16
"""Bytes of an int."""
MAX_KEY_WEIGHT = 10_000
"""Objects that hashing one key may visit: a tuple does not remember its hash, and hashes its items
each time they are shared."""


@functools.lru_cache(maxsize=1000)
def hidden_by(owner: type, name: str) -> bool:
    """Whether an attribute of that name would stand before what the class itself defines."""
    return hasattr(owner, name)
