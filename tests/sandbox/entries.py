"""What the workers of these tests run: ordinary entries, and hostile ones.

An attack returns JSON of what it achieved; the test says that it is nothing. Only what the worker
needs is imported here, for it is imported in the zygote.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sandbox import create_memfd, seal

Answer = tuple[bytes, list[int]]

_libc = ctypes.CDLL(None, use_errno=True)


def _json(value: Any) -> Answer:
    return json.dumps(value).encode(), []


def _tried(action: Callable[[], Any]) -> str:
    """ "" where the action was refused, else what it gave."""
    try:
        return f"achieved: {action()!r}"
    except OSError:
        return ""


def _call(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# Ordinary


def echo(request: bytes, fds: list[int]) -> Answer:
    return request, []


def read_first(request: bytes, fds: list[int]) -> Answer:
    return os.pread(fds[0], 100, 0), []


def count_fds(request: bytes, fds: list[int]) -> Answer:
    """The descriptors that are open here beyond those of the request."""
    return _json([fd for fd in range(4096) if fd not in fds and _open(fd)])


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def segment(request: bytes, fds: list[int]) -> Answer:
    fd = create_memfd("answer")
    os.write(fd, request)
    seal(fd)
    return b"here", [fd]


def raise_named(request: bytes, fds: list[int]) -> Answer:
    raise {
        "ValueError": ValueError("\x1b]52;c;evil\x07 \u202e a\nb"),
        "SystemExit": SystemExit(0),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "MemoryError": MemoryError("no more"),
        "long": ValueError("x" * 10_000_000),
    }[request.decode()]


def wrong_answer(request: bytes, fds: list[int]) -> Any:
    return "text"


def nap(request: bytes, fds: list[int]) -> Answer:
    time.sleep(float(request))
    return b"rested", []


def import_one(request: bytes, fds: list[int]) -> Answer:
    """Import a module that nobody preloaded, in the confinement."""
    module = importlib.import_module(request.decode())
    return _json(module.__file__)


def imported(request: bytes, fds: list[int]) -> Answer:
    return _json(sorted(sys.modules))


def who(request: bytes, fds: list[int]) -> Answer:
    uids, gids = os.getresuid(), os.getresgid()
    environ = sorted(os.environ)
    return _json([uids, gids, os.getgroups(), os.getpid(), os.getsid(0), environ])


# Hostile: the network


def links(request: bytes, fds: list[int]) -> Answer:
    return _json(socket.if_nameindex())


def connect(request: bytes, fds: list[int]) -> Answer:
    """To what the test listens on: TCP, UDP, a pathname socket and an abstract one."""
    goals = json.loads(request)

    def stream(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> Any:
        with socket.socket(family, kind) as sock:
            sock.settimeout(1)
            sock.connect(address)
            return sock.send(b"hello")

    return _json(
        {
            "tcp": _tried(lambda: stream(socket.AF_INET, ("127.0.0.1", goals["tcp"]))),
            "tcp6": _tried(lambda: stream(socket.AF_INET6, ("::1", goals["tcp"]))),
            "udp": _tried(
                lambda: stream(socket.AF_INET, ("127.0.0.1", goals["udp"]), socket.SOCK_DGRAM)
            ),
            "outside": _tried(lambda: stream(socket.AF_INET, ("1.1.1.1", 53), socket.SOCK_DGRAM)),
            "unix": _tried(lambda: stream(socket.AF_UNIX, goals["unix"])),
            "abstract": _tried(lambda: stream(socket.AF_UNIX, "\0" + goals["abstract"])),
            "raw": _tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
            "packet": _tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        }
    )


# Hostile: the file system


def exists(request: bytes, fds: list[int]) -> Answer:
    return _json([path for path in json.loads(request) if os.path.lexists(path)])


def tree(request: bytes, fds: list[int]) -> Answer:
    return _json({path: sorted(os.listdir(path)) for path in ("/", "/dev", "/tmp", "/python")})


def writes(request: bytes, fds: list[int]) -> Answer:
    """Make a file in each folder there is, and count the folders."""
    done, folders = [], 0
    for top, names, _ in os.walk("/"):
        folders += 1
        if folders > 300:
            break
        names[:] = names[:5]
        with contextlib.suppress(OSError):
            open(f"{top}/trace", "x").close()
            done.append(top)
    return _json([done, folders])


def use_tmp(request: bytes, fds: list[int]) -> Answer:
    with open("/tmp/a", "w") as file:
        file.write("b")
    with open("/tmp/a") as file:
        return file.read().encode(), []


def fill_tmp(request: bytes, fds: list[int]) -> Answer:
    block, total = b"x" * (1 << 20), 0
    try:
        for number in range(1000):
            with open(f"/tmp/{number}", "wb") as file:
                total += file.write(block)
    except OSError as error:
        return _json([total, errno.errorcode[error.errno or 0]])
    return _json([total, ""])


def execute(request: bytes, fds: list[int]) -> Answer:
    """Any program, one of /tmp's and a memfd among them. Named: what ran."""
    ran = []
    script = "/tmp/program"
    with open(script, "wb") as file:
        file.write(b"\x7fELF" + bytes(60))
    os.chmod(script, 0o755)
    memfd = os.memfd_create("program")
    os.write(memfd, b"#!/bin/sh\n")
    loaders = ["/lib64/ld-linux-x86-64.so.2", "/usr/bin/true", "/bin/sh", sys.executable, script]
    for path in [*loaders, memfd]:
        for action in (lambda p: os.execve(p, ["x"], {}),):
            try:
                action(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR):
                    ran.append(f"{path}: {errno.errorcode[error.errno or 0]}")
    with contextlib.suppress(OSError):
        subprocess.run(["true"], check=False)
        ran.append("subprocess")
    return _json(ran)


# Hostile: other processes, and privileges


def harm(request: bytes, fds: list[int]) -> Answer:
    """Signal and trace the pids that the test names, and everybody."""
    ptrace_attach = 16
    done = []
    for pid in json.loads(request):
        done.append(_tried(lambda pid=pid: os.kill(pid, signal.SIGUSR1)))
        done.append(_tried(lambda pid=pid: os.close(os.pidfd_open(pid))))
        done.append(_tried(lambda pid=pid: _call(_libc.ptrace(ptrace_attach, pid, None, None))))
        done.append(_tried(lambda pid=pid: os.listdir(f"/proc/{pid}")))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.kill(0, signal.SIGUSR1)  # the own group
    with contextlib.suppress(OSError):
        os.kill(-1, signal.SIGUSR1)
    return _json([word for word in done if word])


def regain(request: bytes, fds: list[int]) -> Answer:
    """Every way back to rights that the worker gave up."""
    flags = {
        "user": 0x10000000,
        "mount": 0x00020000,
        "network": 0x40000000,
        "pid": 0x20000000,
        "both": 0x10020000,
    }
    done = {name: _tried(lambda f=f: _call(_libc.unshare(f))) for name, f in flags.items()}
    done["mount"] += _tried(lambda: _call(_libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
    remount = 32 | 4096  # MS_REMOUNT | MS_BIND
    done["remount"] = _tried(lambda: _call(_libc.mount(None, b"/", None, remount, None)))
    done["chroot"] = _tried(lambda: os.chroot("/tmp"))
    done["setuid"] = _tried(lambda: os.setuid(0))
    done["setgroups"] = _tried(lambda: os.setgroups([0]))
    done["hostname"] = _tried(lambda: socket.sethostname("x"))
    done["mknod"] = _tried(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)))
    done["umount"] = _tried(lambda: _call(_libc.umount2(b"/tmp", 2)))
    done["dumpable"] = "" if _libc.prctl(3, 0, 0, 0, 0) == 0 else "dumpable"
    done["new privileges"] = "" if _libc.prctl(39, 0, 0, 0, 0) == 1 else "allowed"
    bounding = [cap for cap in range(41) if _libc.prctl(23, cap, 0, 0, 0) == 1]
    done["bounding"] = str(bounding) if bounding else ""
    return _json({name: word for name, word in done.items() if word})


def executable_memory(request: bytes, fds: list[int]) -> Answer:
    return _json(
        _tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
    )


# Hostile: resources


def take_heap(request: bytes, fds: list[int]) -> Answer:
    hoard = []
    while True:
        hoard.append(b"x" * (16 << 20))


def take_memfds(request: bytes, fds: list[int]) -> Answer:
    block, hoard = b"x" * (1 << 20), []
    while True:
        hoard.append(os.memfd_create("bomb"))
        with contextlib.suppress(OSError):
            for _ in range(64):
                os.write(hoard[-1], block)


def fork_bomb(request: bytes, fds: list[int]) -> Answer:
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def forks(request: bytes, fds: list[int]) -> Answer:
    """Children and threads that outlive the answer."""
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                pass
            while True:
                time.sleep(1)
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    return b"left some behind", []


def forks_and_stays(request: bytes, fds: list[int]) -> Answer:
    forks(request, fds)
    time.sleep(1000)
    return b"", []


def spin(request: bytes, fds: list[int]) -> Answer:
    while True:
        pass


def spin_in_children(request: bytes, fds: list[int]) -> Answer:
    """RLIMIT_CPU is per process: pass the work on."""
    while True:
        pid = os.fork()
        if pid == 0:
            end = time.process_time() + 0.3
            while time.process_time() < end:
                pass
            os._exit(0)
        os.waitpid(pid, 0)


def stop_itself(request: bytes, fds: list[int]) -> Answer:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)
    return b"", []


def die(request: bytes, fds: list[int]) -> Answer:
    if request == b"segv":
        ctypes.string_at(0)
    if request == b"abort":
        os.abort()
    os._exit(0)


# Hostile: the channel

_CHANNEL = 3


def _channel() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(_CHANNEL))


def raw_frame(request: bytes, fds: list[int]) -> Answer:
    """A frame's header of the test's own choice, then nothing."""
    length, kind = json.loads(request)
    _channel().sendall(struct.pack("<QB", length, kind))
    time.sleep(1000)
    return b"", []


def trickle(request: bytes, fds: list[int]) -> Answer:
    sock = _channel()
    sock.sendall(struct.pack("<QB", 1000, 3))
    while True:
        time.sleep(0.05)
        sock.sendall(b"x")


def two_replies(request: bytes, fds: list[int]) -> Answer:
    reply = struct.pack("<QB", 5, 3) + b"first"
    _channel().sendall(reply + reply.replace(b"first", b"again") + b"trailing")
    return b"third", []


def flood_fds(request: bytes, fds: list[int]) -> Answer:
    """Far more descriptors than a reply may have, over many messages."""
    sock = _channel()
    sock.sendall(struct.pack("<QB", 1000, 3))
    for _ in range(200):
        with contextlib.suppress(OSError):
            socket.send_fds(sock, [b"x"], [0] * int(request))
    return b"", []


def close_channel(request: bytes, fds: list[int]) -> Answer:
    os.close(_CHANNEL)
    time.sleep(1000)
    return b"", []


def return_bad_fds(request: bytes, fds: list[int]) -> Answer:
    return b"", [999]


# In the zygote

warmed = False


def warm_up() -> None:
    global warmed
    warmed = True


given = b"nothing"


def warm_up_with(data: bytes) -> None:
    global given
    given = data


def what_was_given(request: bytes, fds: list[int]) -> Answer:
    return given, []


def is_warm(request: bytes, fds: list[int]) -> Answer:
    return _json(warmed)


rehearsed = False


def rehearse() -> Iterator[None]:
    """It has no end: nobody waits for it."""
    global rehearsed
    while True:
        rehearsed = True
        time.sleep(0.01)
        yield


def is_rehearsed(request: bytes, fds: list[int]) -> Answer:
    return _json(rehearsed)


def start_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def fail_to_warm_up() -> None:
    raise RuntimeError("this warm-up fails")
