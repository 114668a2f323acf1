"""What this host can enforce: found out by confining a real worker, because no file tells it all.

What is required is not decided here, and why a layer was refused is explained in `causes`.
"""

from __future__ import annotations

from sandbox.causes import explain
from sandbox.isolation import Isolation
from sandbox.sandbox import Sandbox

__all__ = ["explain", "probe"]


def probe() -> Isolation:
    """Confine a throwaway worker with nothing required, and tell what it got.

    Takes a few tenths of a second: it starts a zygote of its own, without a preload. Raises
    SandboxError where not even an unconfined worker can be had.
    """
    with Sandbox() as sandbox:
        return sandbox.run("sandbox.throwaway:answer", b"", require=()).isolation
