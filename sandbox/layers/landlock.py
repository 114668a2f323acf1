"""Layer "landlock": a second, independent fence around files, TCP, signals and abstract sockets.

landlock(7). Best effort above ABI 1: rights that the running kernel does not know are left out.
Nothing may be executed, so execve(2) fails everywhere; only /tmp may be written. Alone it is no
isolation: it knows nothing of UDP, and of pathname sockets only from ABI 9.
"""

from __future__ import annotations

import errno
import os
import struct

from sandbox import kernel
from sandbox.isolation import State
from sandbox.layers import Place

# linux/landlock.h: LANDLOCK_ACCESS_FS_*
_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_MAKE_CHAR = 1 << 6
_MAKE_BLOCK = 1 << 11
_REFER = 1 << 13  # ABI 2
_TRUNCATE = 1 << 14  # ABI 3
_IOCTL_DEV = 1 << 15  # ABI 5
_ABI_1 = (1 << 13) - 1
_NET = 0b11  # ABI 4: LANDLOCK_ACCESS_NET_BIND_TCP, _CONNECT_TCP
_SCOPES = 0b11  # ABI 6: LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, _SIGNAL

_TESTED_ABI = "ISOLOAD_TESTS_LANDLOCK_ABI"  # the test suite's switch: lowers the ABI, never raises


def abi() -> int:
    """The ABI to use: the kernel's, or less where the test suite says so."""
    had = kernel.landlock_abi()
    wanted = os.environ.get(_TESTED_ABI, "")
    return min(had, int(wanted)) if wanted.isdecimal() else had


def restrict(place: Place) -> str:
    """After no_new_privs, and while there is one thread: below ABI 8 it binds only that one."""
    version = place.plan.landlock_abi
    if version < 1:
        raise kernel.refused("landlock_create_ruleset", errno.EOPNOTSUPP)
    handled = _handled(version)
    attributes = struct.pack("=QQQ", handled, _NET, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = kernel.landlock_create_ruleset(attributes[:size])
    try:
        for bind in place.plan.binds:
            rights = _READ_FILE | (_READ_DIR if bind.folder else 0)
            if bind.inside == "/dev/null":
                rights |= _WRITE_FILE
            if place.jail or os.access(bind.host, os.R_OK):  # else it can be read in no case
                _allow(ruleset, bind.inside if place.jail else bind.host, rights)
        if place.jail:
            _allow(ruleset, "/tmp", handled & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV))
        kernel.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
    lacking = [
        name for name, since in (("TCP", 4), ("signal and abstract socket", 6)) if version < since
    ]
    if lacking:
        step = f"Landlock ABI {version} has no {' or '.join(lacking)} rules"
        place.record["landlock"].without(State.PARTIAL, step, 0)
    return f"Landlock ABI {version}"


def _handled(version: int) -> int:
    handled = _ABI_1
    for right, since in ((_REFER, 2), (_TRUNCATE, 3), (_IOCTL_DEV, 5)):
        if version >= since:
            handled |= right
    return handled


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise kernel.refused(f"open({path})", error.errno or errno.EIO) from error
    try:
        kernel.landlock_add_path(ruleset, struct.pack("=Qi", rights, fd), path)
    finally:
        os.close(fd)
