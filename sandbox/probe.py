"""What this host can enforce: found out by confining a real worker, because no file tells it all.

What is required is not decided here, and why a layer was refused is explained in `causes`.
"""

from __future__ import annotations

import sandbox
from sandbox.isolation import Isolation


def probe() -> Isolation:
    """Confine a throwaway worker with nothing required, and tell what it got.

    Takes a few tenths of a second: it starts a zygote of its own, without a preload. Raises
    SandboxError where not even an unconfined worker can be had.
    """
    with sandbox.Sandbox() as box:
        return box.run("sandbox.throwaway:answer", b"", require=()).isolation
