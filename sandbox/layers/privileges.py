"""Layer "privileges": uid 65534, no capability in any set, and no way to get one.

capabilities(7), prctl(2), keyrings(7). Where the caller is root the uid is 65534 outside too;
elsewhere the user namespace has made the worker 65534 already.
"""

from __future__ import annotations

import os

from sandbox import kernel
from sandbox.layers import NOBODY, ROOT, Place

_LAST_CAPABILITY = 63
_PR_SET_KEEPCAPS = 8
# SECBIT_NOROOT, _NO_SETUID_FIXUP and _NO_CAP_AMBIENT_RAISE, each with its lock; _KEEP_CAPS_LOCKED
_SECUREBITS = 0b11101111


def become_nobody(place: Place) -> str:
    """Root's capabilities stay until `no_capabilities`: the steps between need them."""
    if place.plan.caller != ROOT:
        return ""
    kernel.prctl(_PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS", 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.raise_permitted_capabilities()
    return f"uid and gid {NOBODY}, no groups"


def own_keyring(place: Place) -> str:
    kernel.join_new_session_keyring()
    return "own session keyring"


def no_new_privileges(place: Place) -> str:
    """No execve from here on gives rights: set-uid programs and file capabilities are dead."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS", 1)
    return "no_new_privs"


def no_capabilities(place: Place) -> str:
    kernel.prctl(kernel.PR_CAP_AMBIENT, "PR_CAP_AMBIENT", kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    if kernel.effective_capabilities():
        kernel.prctl(kernel.PR_SET_SECUREBITS, "PR_SET_SECUREBITS", _SECUREBITS)
        for capability in range(_LAST_CAPABILITY + 1):
            try:
                kernel.prctl(kernel.PR_CAPBSET_DROP, "PR_CAPBSET_DROP", capability)
            except OSError:
                break  # past the kernel's last capability
    kernel.drop_capabilities()
    if os.getresuid() != (NOBODY,) * 3 or os.getresgid() != (NOBODY,) * 3:
        raise kernel.refused(f"uid is {os.getuid()}, not {NOBODY}", 0)
    return "no capabilities"


def not_dumpable(place: Place) -> str:
    """No core, no ptrace, and /proc/PID of this process is not its own user's."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, "PR_SET_DUMPABLE, 0", 0)
    return "not dumpable"


def no_executable_writes(place: Place) -> str:
    """Memory that was writable never becomes executable. PR_SET_MDWE, Linux 6.3"""
    kernel.prctl(kernel.PR_SET_MDWE, "PR_SET_MDWE", kernel.PR_MDWE_REFUSE_EXEC_GAIN)
    return "MDWE"
