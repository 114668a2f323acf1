"""The zygote: a clean interpreter that has imported what workers need, and forks them.

Started by exec in isolated mode with a clean environment (see `processes.py`); reads orders from
its parent over a socketpair without a path, and nothing else: never a request, never a model's
bytes. It sees to its workers' end (`supervisor.py`), and ends when that socket does. One thread, or
it refuses to serve.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from multiprocess.connection import Connection

from sandbox import channel, companions, imports, kernel, sentinel, worker
from sandbox.layers import (
    DEMOTED,
    NOBODY,
    ROOT,
    USER,
    Place,
    Plan,
    Record,
    filesystem,
    landlock,
    namespaces,
    network,
)
from sandbox.reopen import Opener
from sandbox.supervisor import Supervisor, Ward

ORDER_LIMIT = 1 << 20  # bytes of one order
_LAST_WORDS = 4000  # characters of a failed start


def main(fd: int) -> NoReturn:
    """The zygote's life. `fd` is its end of the control socket."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, "PR_SET_DUMPABLE, 0", 0)
    caller = _caller()
    supervisor = Supervisor(fd, companions.start(sentinel.live))
    control = Connection(fd)
    with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(EOFError, OSError):
        try:
            order, fds = _next_order(control, sock)
            opener = Opener(caller) if order["reopens"] else None
            plan = _prepare(order, fds, caller)
        except BaseException:
            failure = {"failed": traceback.format_exc()[-_LAST_WORDS:]}
            control.send_bytes(json.dumps(failure).encode())
            os._exit(1)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # from here on an end of file tells the same
        control.send_bytes(json.dumps({"caller": plan.caller}).encode())
        while True:
            supervisor.serve()
            order, fds = _next_order(control, sock)
            if order["kind"] == "reopen":
                if opener is not None:
                    opener.forward(order["path"], fds[0])
                channel.close_all(fds)
                continue
            ward = _fork(order, fds, plan)
            if ward is not None:
                supervisor.add(ward)
    supervisor.end_all()
    os._exit(0)


def _next_order(control: Connection, sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    order = json.loads(control.recv_bytes(ORDER_LIMIT))
    return order, channel.receive_fds(sock, order["fds"])


def _prepare(order: dict[str, Any], fds: list[int], caller: str) -> Plan:
    """Import and warm up everything, then look at the host, once for all workers."""
    imports.follow(order["folders"])
    for name in order["preload"]:
        importlib.import_module(name)
    gc.freeze()
    if order["warm_up"]:
        worker.find(order["warm_up"])(*(_content(fd) for fd in fds))
    if order["rehearsal"]:
        worker.rehearsal.append(worker.find(order["rehearsal"]))
    with contextlib.suppress(OSError):  # no netlink here: each worker's proof will say so
        network.warm_up()
    names = imports.Names()
    binds, links = filesystem.system_binds()
    address_space, data = _mapped()
    if caller == DEMOTED:
        os.setgroups([])
    plan = Plan(
        caller=caller,
        ids=(os.geteuid(), os.getegid()),
        binds=(*names.binds, *binds),
        links=links,
        proc=os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        landlock_abi=landlock.abi(),
        address_space=address_space,
        data=data,
        vsock=network.vsock_transport(),
    )
    sys.dont_write_bytecode = True  # a worker writes nothing
    worker.renamed.update(names.table())
    imports.rename(worker.renamed)  # last: from here nothing can be imported outside a worker
    gc.collect()
    gc.disable()  # a warm-up may have switched it on
    gc.freeze()
    _check_single_threaded()
    return plan


def _content(fd: int) -> bytes:
    with open(fd, "rb") as file:
        file.seek(0)  # it is where the parent's writing ended
        return file.read()


def _fork(order: dict[str, Any], fds: list[int], plan: Plan) -> Ward | None:
    """The worker that the parent asks for; None where the kernel will not have it."""
    own, lifeline, *above = fds
    disabled = frozenset(order["disabled"])
    life = socket.socket(fileno=lifeline)
    _check_single_threaded()
    try:
        pid, pidfd, born_in = _clone(plan, namespaces.at_birth(plan.caller, disabled))
    except OSError as error:
        _refuse(life, error)
        channel.close_all([own, *above])
        return None
    if pid == 0:
        worker.main(Place(plan, Record(), disabled, own, order["spare"], born_in))
    os.sched_yield()  # it may wait for this CPU, and the parent for it
    os.close(own)  # the worker's death is the end of its channel
    return Ward(pid, pidfd, life, above, order["groups"])


def _refuse(life: socket.socket, error: OSError) -> None:
    with life, contextlib.suppress(OSError):  # the parent may be gone
        life.send(json.dumps({"refused": str(error)}).encode(), socket.MSG_DONTWAIT)


def _clone(plan: Plan, flags: int) -> tuple[int, int, int]:
    """(pid, pidfd, the namespaces that it was born in). Where the kernel refuses them, without any:
    the steps of the worker find out which, and why.

    A user namespace is its creator's, so a demoted zygote is nobody while it makes one.
    """
    pid = -1
    if plan.caller == DEMOTED:
        os.setresgid(NOBODY, NOBODY, 0)
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        try:
            pid, pidfd = kernel.clone(flags)
        except OSError:
            flags = 0
            pid, pidfd = kernel.clone(flags)
    finally:
        if plan.caller == DEMOTED and pid != 0:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
    return pid, pidfd, flags


def _check_single_threaded() -> None:
    """A fork copies only the calling thread, whatever locks the others hold."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(
            f"the zygote has {threads} threads and will not fork: what it preloaded or warmed up "
            "started them"
        )


def _caller() -> str:
    """How workers will be confined: with real capabilities, or by a user namespace."""
    had = kernel.effective_capabilities()
    may_be_nobody = (
        had >> kernel.CAP_SETUID & 1
        and had >> kernel.CAP_SETGID & 1
        and _maps_nobody("/proc/self/uid_map")
        and _maps_nobody("/proc/self/gid_map")
    )
    if may_be_nobody and had >> kernel.CAP_SYS_ADMIN & 1:
        return ROOT
    if may_be_nobody and os.geteuid() == 0:
        return DEMOTED
    return USER


def _maps_nobody(path: str) -> bool:
    with open(path, encoding="ascii") as lines:
        for line in lines:
            first, _, count = (int(number) for number in line.split())
            if first <= NOBODY < first + count:
                return True
    return False


def _mapped() -> tuple[int, int]:
    """Bytes of address space and of data that this process, and so a worker, starts with."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = [int(number) for number in file.read().split()]
    unit = resource.getpagesize()
    return pages[0] * unit, pages[5] * unit
