"""What a fork of the caller's process must not keep: descriptors that hold workers alive.

A child that had them would keep the lifelines of its parent's workers open. So whoever owns some
registers a function that closes them in the child, and makes them under `creating`, which no fork
can interrupt.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Owner(Protocol):
    def after_fork_in_child(self) -> None: ...


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
creating = threading.RLock()


def register(owner: Owner) -> None:
    with creating:
        _owners.add(owner)


def _in_child() -> None:
    global creating
    creating = threading.RLock()
    for owner in list(_owners):
        owner.after_fork_in_child()


def _before() -> None:
    creating.acquire()


def _in_parent() -> None:
    creating.release()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
