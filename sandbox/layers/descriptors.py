"""Layer "descriptors": nothing that the worker inherited is open, and it has its own session.

An inherited descriptor is a hole through every other layer, and a shared process group lets
kill(0) reach the parent across namespaces (kill(2)).
"""

from __future__ import annotations

import os

from sandbox import kernel
from sandbox.layers import Place

CHANNEL = 3  # where the worker's channel lies once it is confined


def keep_only_own(place: Place) -> str:
    """0, 1 and 2 are /dev/null (the zygote's 0 is), and what the confinement needs stays."""
    os.dup2(0, 1)
    os.dup2(0, 2)
    kernel.close_all_but({0, 1, 2, place.channel, place.plan.proc, *place.join})
    return "close_range"


def own_session(place: Place) -> str:
    os.setsid()
    return "setsid"


def keep_only_channel(place: Place) -> str:
    """The last step: from here the worker holds its channel and /dev/null."""
    place.channel = os.dup2(place.channel, CHANNEL, inheritable=False)
    kernel.close_all_but({0, 1, 2, CHANNEL})
    return ""
