"""B. A worker against other processes: signals, memory, descriptors, keys, sockets, terminals."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.shared_memory
import os
import pty
import select
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks import outside
from tests.attacks.entries.native import libc, syscall

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("unharmed")]

SANDBOXES = ("box",)
_ROOT = Path(__file__).resolve().parents[2]

REFUSED = {"EPERM", "EACCES", "ENOENT", "ESRCH", "EINVAL", "ENOSYS", "ENOTTY", "EBADF", "ENODEV"}


def test_no_signal_reaches_anybody(attack):
    """Line 7: kill(0), kill(-1), every pid and group, F_SETOWN with O_ASYNC: nothing arrives."""
    with outside.canary_process() as canary, outside.Signals() as signals:
        targets = [os.getpid(), os.getpgid(0), os.getppid(), canary.pid]
        tried = attack("processes:signals", targets)
    assert signals.seen == []
    assert tried["kill(0, 10)"] == "done"  # it reached the worker's own group, and nobody else
    assert tried["getppid"] == "0"
    assert tried[f"pidfd_open({canary.pid})"] != "done"


def test_the_worker_has_a_session_and_process_ids_of_its_own(box):
    """Line 7: seen from outside, the worker shares neither session nor group with the parent."""
    with outside.held(box) as worker:
        assert os.getsid(worker.pid) != os.getsid(0)
        assert os.getpgid(worker.pid) != os.getpgid(0)
        assert outside.status_of(worker.pid)["NSpid"].split()[-1] == "1"


def test_no_descriptor_of_the_parent_is_there(attack, tmp_path):
    """Line 8: fifty canaries that a program would inherit, a folder and a listener among them."""
    with contextlib.ExitStack() as stack:
        canaries = set()
        for number in range(48):
            file = stack.enter_context((tmp_path / str(number)).open("w"))
            os.set_inheritable(file.fileno(), True)
            canaries.add((os.fstat(file.fileno()).st_dev, os.fstat(file.fileno()).st_ino))
        folder = os.open(tmp_path, os.O_RDONLY)
        stack.callback(os.close, folder)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for fd in (folder, listener.fileno()):
            os.set_inheritable(fd, True)
            canaries.add((os.fstat(fd).st_dev, os.fstat(fd).st_ino))
        read, write = os.pipe()
        stack.callback(os.close, read)
        stack.callback(os.close, write)
        found = attack("processes:descriptors", fds=[read])
    opened = {int(fd): status for fd, status in found["open"].items()}
    for status in opened.values():
        assert (status["device"], status["inode"]) not in canaries
    null = os.stat("/dev/null").st_rdev
    assert [opened.pop(fd)["rdev"] for fd in (0, 1, 2)] == [null] * 3
    given = [opened.pop(fd) for fd in found["given"]]
    assert [stat.S_ISFIFO(status["kind"]) for status in given] == [True]
    assert [stat.S_ISSOCK(status["kind"]) for status in opened.values()] == [True]


def test_a_zygote_started_under_inheritable_descriptors_inherits_none(tmp_path):
    """Line 8: the canaries are open before the zygote is started, as in a careless program."""
    code = """
import json, os, socket, sys
canaries = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(50)]
listener = socket.create_server(("127.0.0.1", 0))
canaries.append(listener.fileno())
for fd in canaries: os.set_inheritable(fd, True)
inodes = [os.fstat(fd).st_ino for fd in canaries]
from sandbox import Sandbox
with Sandbox(preload=["tests.attacks.entries.processes"]) as box:
    reply = box.run("tests.attacks.entries.processes:descriptors", b"{}")
found = json.loads(reply.data)["open"]
assert len(found) == 4, found
assert not [s for s in found.values() if s["inode"] in inodes], found
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120, cwd=_ROOT)


def test_no_process_can_be_traced_read_or_written(attack):
    """Line 9: ptrace, process_vm_readv and _writev, /proc/PID, pidfd_getfd on the parent."""
    secret = ctypes.create_string_buffer(os.urandom(32), 32)
    before = secret.raw
    outcome = attack("processes:trace", [os.getpid(), ctypes.addressof(secret), len(secret)])
    assert secret.raw == before
    assert outcome["read"] == ""
    assert set(outcome["results"].values()) <= REFUSED
    assert outside.status_of(os.getpid())["TracerPid"] == "0"


def test_nothing_is_typed_into_the_callers_terminal():
    """Line 10: TIOCSTI on every descriptor of a worker whose caller sits at a terminal."""
    code = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from sandbox import Sandbox
with Sandbox(preload=["tests.attacks.entries.processes"]) as box:
    box.run("tests.attacks.entries.processes:terminal", b"echo attacked\\n")
print("finished", flush=True)
"""
    master, slave = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=slave, stdout=slave, stderr=slave, cwd=_ROOT, start_new_session=True,
        )  # fmt: skip
        output = b""
        while b"finished" not in output and child.poll() is None:
            if select.select([master], [], [], 1)[0]:
                output += os.read(master, 65536)
        assert b"finished" in output, output
        assert b"attacked" not in output
        assert child.wait(outside.PATIENCE) == 0
        fcntl.fcntl(slave, fcntl.F_SETFL, os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            os.read(slave, 100)
    finally:
        os.close(master)
        os.close(slave)


def test_multiprocessings_helpers_cannot_be_reached(attack):
    """Line 11: the resource tracker's and the forkserver's pipes, and the forkserver's listener."""
    tracker = multiprocessing.resource_tracker._resource_tracker
    tracker.ensure_running()
    server = multiprocessing.forkserver._forkserver
    server.ensure_running()
    segment = multiprocessing.shared_memory.SharedMemory(create=True, size=16)
    try:
        line = f"UNREGISTER:{segment._name}:shared_memory\nREGISTER:{segment._name}:shared_memory\n"
        request = {"line": line, "listeners": [server._forkserver_address]}
        tried = attack("processes:pipes", request)
        assert set(tried.values()) <= {"ENOENT", "ECONNREFUSED", "EACCES", "EPERM"}
        assert Path("/dev/shm", segment._name.lstrip("/")).exists()
        assert tracker._check_alive()
        os.kill(server._forkserver_pid, 0)
    finally:
        segment.close()
        segment.unlink()
        server._stop()
        tracker._stop()


def test_system_v_memory_and_keys_stay_the_callers(attack):
    """Line 12: a segment by key and by number, a key in each keyring by name and by serial."""
    libc.shmat.restype = ctypes.c_void_p
    key = 0x49534F00 | os.getpid() & 0xFF
    shmid = syscall("shmget", key, 4096, 0o1666)
    try:
        address = libc.shmat(shmid, None, 0)
        ctypes.memmove(address, b"canary", 7)
        description, secret = f"isoload-canary-{os.getpid()}", b"secret-payload"
        serial, ring = -1, -3
        with contextlib.suppress(OSError):  # a container may forbid keyrings to everybody
            syscall("keyctl", 0, -3, 1)
            serial = syscall("add_key", b"user", description.encode(), secret, len(secret), -3)
            ring = syscall("keyctl", 0, -3, 0)
        outcome = attack(
            "processes:ipc",
            {
                "key": key,
                "shmid": shmid,
                "description": description,
                "serial": serial,
                "ring": ring,
            },
        )
        assert ctypes.string_at(address) == b"canary"
        assert outcome["read"] == ""
        assert "done" not in outcome["results"].values()
        libc.shmdt(ctypes.c_void_p(address))
    finally:
        syscall("shmctl", shmid, 0, 0)


def test_a_vsock_listener_of_this_host_is_out_of_reach_or_the_report_says_so(box, attack):
    """Line 12: no namespace holds AF_VSOCK back: where it can be had, the network layer says so."""
    with socket.socket(socket.AF_VSOCK) as listener:
        try:
            listener.bind((socket.VMADDR_CID_ANY, 0xFFFFFFFF))
        except OSError as error:
            pytest.skip(f"no AF_VSOCK here: {error}")
        listener.listen(1)
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        tried = attack("processes:connect", [[socket.AF_VSOCK, socket.SOCK_STREAM, [1, port]]])
        reached = "done" in tried.values()
        with contextlib.suppress(TimeoutError):
            listener.accept()[0].close()
            reached = True
    if reached:
        assert "AF_VSOCK" in box.isolation()["network"].cause


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_no_unix_socket_of_the_host_can_be_reached(attack, tmp_path, kind):
    """Line 13: abstract and pathname sockets of each kind."""
    with (
        socket.socket(socket.AF_UNIX, kind) as abstract,
        socket.socket(socket.AF_UNIX, kind) as path,
    ):
        name = f"\0isoload-canary-{os.getpid()}-{kind}"
        file = str(tmp_path / "socket")
        abstract.bind(name)
        path.bind(file)
        os.chmod(file, 0o777)
        for server in (abstract, path):
            if kind != socket.SOCK_DGRAM:
                server.listen(1)
            server.setblocking(False)
        addresses = [[socket.AF_UNIX, int(kind), address] for address in (name, file)]
        tried = attack("processes:connect", addresses)
        assert set(tried.values()) <= {"ECONNREFUSED", "ENOENT", "EPERM", "EACCES"}
        for server in (abstract, path):
            with pytest.raises(BlockingIOError):
                server.recv(1) if kind == socket.SOCK_DGRAM else server.accept()


def test_no_network_of_the_host_can_be_reached(attack):
    """Line 13: TCP and UDP to the host's own listeners, by IPv4 and IPv6."""
    with contextlib.ExitStack() as stack:
        addresses = []
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                server = stack.enter_context(socket.socket(family, kind))
                try:
                    server.bind((host, 0))
                except OSError:
                    continue  # a host without IPv6
                if kind == socket.SOCK_STREAM:
                    server.listen(1)
                server.setblocking(False)
                addresses.append([int(family), int(kind), [host, server.getsockname()[1]]])
        tried = attack("processes:connect", addresses)
        refused = {errno.errorcode[number] for number in (errno.ENETUNREACH, errno.EADDRNOTAVAIL)}
        assert set(tried.values()) <= refused | {"EACCES", "ECONNREFUSED"}


def test_nothing_that_was_given_up_can_be_had_again(box, attack, tmp_path):
    """Line 14: namespaces, mounts, handles, bpf, perf, modules, cgroup files, limits."""
    canary = tmp_path / "canary"
    canary.write_bytes(b"canary")
    module = Path(__file__).with_name("lines.py")
    text = module.read_bytes()
    with canary.open("rb") as file:
        tried = attack("kernel:regain", [str(canary), str(module)], fds=[file.fileno()])
    allowed = {
        name for name, result in tried.items() if result == "done" and not name.startswith("fchdir")
    }
    # Handles can be made of what is open; opening one takes a capability.
    assert not {name for name in allowed if not name.startswith("name_to_handle_at")}
    assert canary.read_bytes() == b"canary"
    assert module.read_bytes() == text


def test_seen_from_outside_the_worker_has_no_rights(box):
    """Line 14: capabilities, no_new_privs, ids and limits, as the kernel tells everybody."""
    with outside.held(box) as worker:
        status = outside.status_of(worker.pid)
    assert {int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    root = os.geteuid() == 0
    expected = str(65534 if root else os.geteuid())
    assert set(status["Uid"].split()) == {expected}
    if root:
        assert status["Groups"].split() == []


def test_io_uring_is_confined_as_the_worker_is(attack, tmp_path):
    """Line 14: files and sockets asked for through a ring, whose work is done elsewhere."""
    canary = tmp_path / "canary"
    canary.write_bytes(b"canary")
    name = f"\0isoload-ring-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen(1)
        server.setblocking(False)
        paths = [str(canary), "/etc/passwd", "/proc/1/environ", "/python/0"]
        tried = attack("uring:attack", {"paths": paths, "sockets": [name]})
        assert [key for key, result in tried.items() if result == "done"] in ([], ["setup"])
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_program_can_be_run_and_none_raises_rights(attack):
    """Line 16: set-user-ID programs of the host, of the worker's own making, and in memory."""
    programs = ["/usr/bin/su", "/usr/bin/passwd", "/bin/mount", "/usr/bin/sudo", sys.executable]
    tried = attack("kernel:execute", programs)
    # Landlock does not see a memory file; what runs there is as confined as what ran it.
    assert set(tried.values()) <= {"refused", "ran: 254", "not tried"}  # 254: 65534 & 0xFF
    assert {result for name, result in tried.items() if "memfd" not in name} == {"refused"}


def test_memory_that_was_written_cannot_be_run(attack):
    """Line 16: no page is writable and executable, or becomes so (where the kernel has MDWE)."""
    state = attack("kernel:state")
    if state["mdwe"] != 1:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert set(attack("kernel:write_and_run").values()) == {"refused"}


def test_the_worker_says_of_itself_what_the_kernel_holds_of_it(attack):
    """Line 16: no capability in any set, no_new_privs, not dumpable, nobody and nothing else."""
    state = attack("kernel:state")
    assert int(state["capabilities"], 16) == 0
    assert (state["no_new_privs"], state["dumpable"], state["core"]) == (1, 0, 0)
    assert set(state["ids"]) == {65534}
