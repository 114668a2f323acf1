"""The small processes beside a zygote, forked off before it imports anything large."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable

from sandbox import kernel


def start(live: Callable[[socket.socket], None], flags: int = 0) -> socket.socket:
    """Fork one that does `live` with its end of a socket, and has nothing else open.

    `flags`: the namespaces that it is cloned into. Returns the zygote's end, which ends when the
    companion dies, as the other ends when the zygote does. Raises OSError where the kernel refuses.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid, pidfd = kernel.clone(flags)
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        try:
            gc.enable()  # a zygote does without while it imports; this one lives on as it is
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            os.setsid()
            kernel.close_all_but({0, 1, 2, theirs.fileno()})
            live(theirs)
        finally:
            os._exit(0)
    theirs.close()
    os.close(pidfd)
    return ours
