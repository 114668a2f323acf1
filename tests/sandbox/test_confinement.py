"""From inside a worker: nothing of the host can be reached, seen, changed or regained."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import IsolationError, Sandbox, State
from tests.sandbox.conftest import ENTRIES, Run

pytestmark = pytest.mark.isolation


def answer(run: Run, name: str, request: Any = b"", **named: Any) -> Any:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return json.loads(run(name, body, **named).data)


@pytest.fixture
def listeners() -> Iterator[dict[str, Any]]:
    """Something to reach, of each kind; after the test nobody has."""
    folder = tempfile.mkdtemp()
    name = f"isoload-test-{os.getpid()}"
    tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    udp.bind(("127.0.0.1", 0))
    unix.bind(f"{folder}/socket")
    os.chmod(f"{folder}/socket", 0o777)
    abstract.bind("\0" + name)
    sockets = [tcp, udp, unix, abstract]
    for sock in sockets:
        sock.setblocking(False)
        if sock is not udp:
            sock.listen()
    yield {
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "unix": f"{folder}/socket",
        "abstract": name,
    }
    for sock in sockets:
        with pytest.raises(BlockingIOError):
            sock.recv(1) if sock is udp else sock.accept()
        sock.close()
    os.unlink(f"{folder}/socket")
    os.rmdir(folder)


def test_every_layer_but_the_cgroup_is_enforced_here(isolated: Sandbox) -> None:
    states = {layer.name: layer.state for layer in isolated.isolation().layers}
    assert tuple(states) == sandbox.LAYERS
    required = {name: states[name] for name in sandbox.DEFAULT_REQUIRED - {"memory"}}
    assert set(required.values()) == {State.ENFORCED}
    assert states["memory"] in (State.ENFORCED, State.PARTIAL)


def test_there_is_no_link_but_lo(run: Run) -> None:
    assert [name for _, name in answer(run, "links")] == ["lo"]


def test_no_socket_reaches_anything(run: Run, listeners: dict[str, Any]) -> None:
    assert set(answer(run, "connect", listeners).values()) == {""}


def test_home_secrets_and_working_folder_do_not_exist(run: Run) -> None:
    host = Path(__file__).resolve()
    paths = [
        *(str(Path.home()), "/root", "/home", "/etc", "/etc/passwd", "/etc/shadow"),
        *("/proc", "/proc/self", "/sys", "/run", "/var", "/dev/tty", "/dev/shm", "/dev/kmsg"),
        *(os.getcwd(), str(host), str(host.parents[2]), tempfile.gettempdir() + "/.."),
    ]
    there = answer(run, "exists", [path for path in paths if path != "/tmp/.."])
    assert there == []


@pytest.fixture(scope="module")
def unfenced(isolated: Sandbox) -> Iterator[Run]:
    """Workers without Landlock, so that the root itself has to hold."""
    with Sandbox(preload=[ENTRIES], _disable={"landlock"}) as box:
        yield lambda name, *args, **named: box.run(f"{ENTRIES}:{name}", *args, **named)


def test_the_root_is_almost_empty(unfenced: Run) -> None:
    tree = answer(unfenced, "tree")
    assert set(tree["/"]) <= {"dev", "lib", "lib32", "lib64", "python", "tmp", "usr"}
    assert tree["/dev"] == ["null", "urandom", "zero"]
    assert tree["/tmp"] == []


def test_nothing_but_tmp_can_be_written(unfenced: Run) -> None:
    written, folders = answer(unfenced, "writes")
    assert written == ["/tmp"]
    assert folders > 20


def test_tmp_works_is_bounded_and_is_not_the_hosts(run: Run) -> None:
    assert run("use_tmp").data == b"b"
    written, error = answer(run, "fill_tmp")
    assert error == "ENOSPC"
    assert written <= 64 << 20
    assert not os.path.exists("/tmp/a")


def test_an_import_works_inside_and_comes_from_the_inside(run: Run) -> None:
    for module in ("xmlrpc.client", "sqlite3", "numpy"):
        assert answer(run, "import_one", module.encode()).startswith("/python/")


def test_no_program_can_be_executed(run: Run) -> None:
    assert answer(run, "execute") == []


def test_the_worker_is_nobody_alone_in_its_own_session(run: Run) -> None:
    uids, gids, groups, pid, session, environ = answer(run, "who")
    assert uids == gids == [65534] * 3
    assert set(groups) <= {65534}
    assert (pid, session) == (1, 1)
    assert "HOME" not in environ or os.environ.get("HOME") != "/nonexistent"
    assert not {"PYTHONPATH", "USER", "SSH_AUTH_SOCK", "VIRTUAL_ENV"} & set(environ)


def test_no_host_process_can_be_signalled_traced_or_seen(run: Run) -> None:
    hits: list[int] = []
    # In a container, and of a program that init started, the parent's pid is 1: the worker's own.
    pids = {os.getpid(), os.getppid(), threading.get_native_id()} - {1}
    before = signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
    try:
        assert answer(run, "harm", sorted(pids)) == []
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert hits == []


def test_no_right_can_be_regained(run: Run) -> None:
    assert answer(run, "regain") == {}


def test_memory_is_never_writable_and_executable(isolated: Sandbox, run: Run) -> None:
    if "MDWE" not in isolated.isolation()["privileges"].mechanism:
        pytest.skip("the kernel has no PR_SET_MDWE (Linux 6.3)")
    assert answer(run, "executable_memory") == ""


def test_no_descriptor_of_the_parent_is_open(run: Run) -> None:
    canaries = [os.open(__file__, os.O_RDONLY) for _ in range(50)]
    canaries.append(os.open("/", os.O_RDONLY))
    for fd in canaries:
        os.set_inheritable(fd, True)
    try:
        with tempfile.TemporaryFile() as file:
            open_here = answer(run, "count_fds", fds=[file.fileno()])
        with Sandbox(preload=[ENTRIES]) as fresh:  # a zygote started while they are open
            fresh_reply = fresh.run(f"{ENTRIES}:count_fds", b"")
    finally:
        for fd in canaries:
            os.close(fd)
    assert open_here == [0, 1, 2, 3]
    assert json.loads(fresh_reply.data) == [0, 1, 2, 3]


def test_a_handed_over_descriptor_can_be_read(run: Run) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"weights")
        file.flush()
        assert run("read_first", b"", [file.fileno()]).data == b"weights"


def test_no_variable_of_the_caller_reaches_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    with Sandbox(preload=[ENTRIES]) as box:
        environ = json.loads(box.run(f"{ENTRIES}:who", b"").data)[-1]
    assert "SECRET_TOKEN" not in environ


@pytest.mark.parametrize("layer", sorted(sandbox.DEFAULT_REQUIRED))
def test_a_required_layer_that_is_missing_is_an_error_before_anything_runs(
    layer: str, isolated: Sandbox
) -> None:
    with Sandbox(preload=[ENTRIES], _disable={layer, "cgroup"}) as box:
        with pytest.raises(IsolationError) as caught:
            box.run(f"{ENTRIES}:echo", b"hello")
        assert [missing.name for missing in caught.value.missing] == [layer]
        reply = box.run(f"{ENTRIES}:echo", b"hello", require=sandbox.DEFAULT_REQUIRED - {layer})
    assert reply.data == b"hello"
    assert reply.isolation[layer].state is State.UNAVAILABLE


def test_the_suite_can_lower_the_landlock_abi_and_not_raise_it(
    isolated: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isolated.isolation()["landlock"].state is not State.ENFORCED:
        pytest.skip("this host has no Landlock of ABI 6")
    had = isolated.isolation()["landlock"].mechanism
    for wanted, state, mechanism in (
        ("1", State.PARTIAL, "Landlock ABI 1"),
        ("4", State.PARTIAL, "Landlock ABI 4"),
        ("0", State.UNAVAILABLE, ""),
        ("99", State.ENFORCED, had),
    ):
        monkeypatch.setenv("ISOLOAD_TESTS_LANDLOCK_ABI", wanted)
        with Sandbox() as box:
            layer = box.isolation()["landlock"]
        assert (layer.state, layer.mechanism) == (state, mechanism)
