"""The kernel's interface: constants under their kernel names, and the calls that Python lacks.

Every call raises OSError with the step in `filename`, so that a failure can be told to a person.
Nothing here decides anything. System calls from 424 on have one number on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_gil_held = ctypes.PyDLL(None, use_errno=True)
_gil_held.syscall.restype = ctypes.c_long

# sched.h, clone(2)
_CLONE_PIDFD = 0x00001000  # Linux 5.2
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2), umount2(2), mount_setattr(2), fsopen(2), open_tree(2), move_mount(2)
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# prctl(2), capabilities(7)
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_MDWE = 65  # Linux 6.3
PR_MDWE_REFUSE_EXEC_GAIN = 1
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SYS_ADMIN = 21
_PR_GET_TID_ADDRESS = 40
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

KEYCTL_JOIN_SESSION_KEYRING = 1

_SYS_move_mount = 429
_SYS_open_tree = 428
_SYS_fsopen = 430
_SYS_fsconfig = 431
_SYS_fsmount = 432
_SYS_close_range = 436
_SYS_mount_setattr = 442  # Linux 5.12
_SYS_landlock_create_ruleset = 444
_SYS_landlock_add_rule = 445
_SYS_landlock_restrict_self = 446

_OLD_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "keyctl": 250},
    "aarch64": {"clone": 220, "pivot_root": 41, "keyctl": 219},
    "riscv64": {"clone": 220, "pivot_root": 41, "keyctl": 219},
    "loongarch64": {"clone": 220, "pivot_root": 41, "keyctl": 219},
    "ppc64le": {"clone": 120, "pivot_root": 203, "keyctl": 271},
    "s390x": {"clone": 120, "pivot_root": 217, "keyctl": 280},
}.get(platform.machine(), {})


def refused(step: str, number: int) -> OSError:
    """The OSError for `step`, which the kernel refused with errno `number`."""
    return OSError(number, os.strerror(number), step)


def _checked(result: int, step: str) -> int:
    if result < 0:
        raise refused(step, ctypes.get_errno())
    return result


def _syscall(step: str, number: int, *arguments: object) -> int:
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _checked(int(_libc.syscall(ctypes.c_long(number), *wide)), step)


def _old_number(name: str) -> int:
    """NotImplementedError on a machine that is in no table here: `confine` records it."""
    if name not in _OLD_NUMBERS:
        raise NotImplementedError(f"no number for {name}(2) on {platform.machine()}")
    return _OLD_NUMBERS[name]


def _old_syscall(name: str, *arguments: object) -> int:
    return _syscall(name, _old_number(name), *arguments)


def clone(flags: int) -> tuple[int, int]:
    """fork(2) into the new namespaces of `flags`: (0, -1) in the child, (pid, pidfd) in the parent.

    Nothing that Python, its modules or the C library do around a fork is done: only from a process
    with one thread. What it saves is half of a fork's cost.
    """
    arguments = [flags | _CLONE_PIDFD | signal.SIGCHLD, 0]
    if platform.machine() == "s390x":
        arguments.reverse()
    wide = [ctypes.c_ulong(value) for value in arguments]
    pidfd = ctypes.c_int(-1)
    number = ctypes.c_long(_old_number("clone"))
    zero = ctypes.c_ulong(0)
    pid = _checked(_gil_held.syscall(number, *wide, ctypes.byref(pidfd), zero, zero), "clone")
    if pid:
        return pid, pidfd.value
    if _own_thread_id is not None:
        _own_thread_id.value = threading.get_native_id()
    return 0, -1


def _cached_thread_id() -> ctypes.c_int | None:
    """Where the C library remembers the main thread's id, which `clone` puts right."""
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) or not address.value:
        return None  # a kernel without CONFIG_CHECKPOINT_RESTORE; the old id does no harm
    cached = ctypes.c_int.from_address(address.value)
    return cached if cached.value == threading.get_native_id() else None


_own_thread_id = _cached_thread_id()


def unshare(flags: int, name: str) -> None:
    _checked(_libc.unshare(flags), f"unshare({name})")


def prctl(option: int, name: str, second: int = 0, third: int = 0) -> None:
    """prctl(2); the unused arguments are 0, as the newer options demand."""
    long = ctypes.c_ulong
    _checked(_libc.prctl(option, long(second), long(third), long(0), long(0)), f"prctl({name})")


def sethostname(name: str) -> None:
    _checked(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name))), "sethostname")


def mount_private() -> None:
    """No mount made from here on reaches another namespace."""
    _checked(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount(/, MS_PRIVATE)")


def mounts_follow() -> None:
    """Mounts made elsewhere reach this namespace from here on, and none made here leaves it."""
    _checked(_libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "mount(/, MS_SLAVE)")


def umount_detach(path: str) -> None:
    _checked(_libc.umount2(path.encode(), MNT_DETACH), f"umount2({path}, MNT_DETACH)")


def pivot_root(new_root: str, put_old: str) -> None:
    _old_syscall("pivot_root", new_root.encode(), put_old.encode())


def new_tmpfs(options: dict[str, str], attributes: int) -> int:
    """A detached tmpfs; returns its descriptor."""
    context = _syscall("fsopen(tmpfs)", _SYS_fsopen, b"tmpfs", FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            _syscall(
                f"fsconfig(tmpfs, {key})",
                _SYS_fsconfig,
                context,
                FSCONFIG_SET_STRING,
                key.encode(),
                value.encode(),
                0,
            )
        _syscall("fsconfig(tmpfs)", _SYS_fsconfig, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall("fsmount(tmpfs)", _SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def clone_tree(path: str) -> int:
    """A detached copy of the mounts at `path`, those below included; returns its descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return _syscall(f"open_tree({path})", _SYS_open_tree, AT_FDCWD, os.fsencode(path), flags)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(tree: int, attributes: int, *, recursive: bool = True) -> None:
    request = _MountAttr(attr_set=attributes)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _syscall(
        "mount_setattr",
        _SYS_mount_setattr,
        tree,
        b"",
        flags,
        ctypes.byref(request),
        ctypes.sizeof(request),
    )


def move_mount(tree: int, directory: int, path: str) -> None:
    """Attach the detached `tree` at `path`, relative to the directory descriptor."""
    _syscall(
        f"move_mount({path})",
        _SYS_move_mount,
        tree,
        b"",
        directory,
        os.fsencode(path),
        MOVE_MOUNT_F_EMPTY_PATH,
    )


def close_range(first: int, last: int) -> None:
    """close_range(2), Linux 5.9; closes one by one on an older kernel."""
    if last < first:
        return
    try:
        _syscall("close_range", _SYS_close_range, first, last, 0)
    except OSError:
        os.closerange(first, min(last, os.sysconf("SC_OPEN_MAX") - 1) + 1)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in `keep`."""
    first = 0
    for fd in sorted(keep):
        close_range(first, fd - 1)
        first = fd + 1
    close_range(first, 0xFFFFFFFF)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets. capset(2)"""
    header = _CapHeader(version=_LINUX_CAPABILITY_VERSION_3, pid=0)
    data = (_CapData * 2)()
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def raise_permitted_capabilities() -> None:
    """Make every permitted capability effective. capget(2), capset(2)"""
    header = _CapHeader(version=_LINUX_CAPABILITY_VERSION_3, pid=0)
    data = (_CapData * 2)()
    _checked(_libc.capget(ctypes.byref(header), ctypes.byref(data)), "capget")
    for half in data:
        half.effective = half.permitted
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def effective_capabilities() -> int:
    """The effective set as a bit mask. capget(2)"""
    header = _CapHeader(version=_LINUX_CAPABILITY_VERSION_3, pid=0)
    data = (_CapData * 2)()
    _checked(_libc.capget(ctypes.byref(header), ctypes.byref(data)), "capget")
    return int(data[0].effective) | int(data[1].effective) << 32


def join_new_session_keyring() -> None:
    _old_syscall("keyctl", KEYCTL_JOIN_SESSION_KEYRING, None)


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 where there is none. landlock_create_ruleset(2)"""
    version = 1  # LANDLOCK_CREATE_RULESET_VERSION
    try:
        return _syscall("landlock", _SYS_landlock_create_ruleset, None, 0, version)
    except OSError:
        return 0


def landlock_create_ruleset(attributes: bytes) -> int:
    step = "landlock_create_ruleset"
    return _syscall(step, _SYS_landlock_create_ruleset, attributes, len(attributes), 0)


def landlock_add_path(ruleset: int, rule: bytes, path: str) -> None:
    """`rule` is a packed struct landlock_path_beneath_attr."""
    kind = 1  # LANDLOCK_RULE_PATH_BENEATH
    _syscall(f"landlock_add_rule({path})", _SYS_landlock_add_rule, ruleset, kind, rule, 0)


def landlock_restrict_self(ruleset: int) -> None:
    _syscall("landlock_restrict_self", _SYS_landlock_restrict_self, ruleset, 0)
