"""Each layer switched off alone: what still stops each attack; and the error if it is required."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox import (
    DEFAULT_REQUIRED,
    LAYERS,
    IsolationError,
    LimitError,
    Limits,
    Sandbox,
    State,
    WorkerError,
)
from tests.attacks import outside

pytestmark = pytest.mark.isolation

ENTRIES = "tests.attacks.entries"
MIB = 1 << 20
NOBODY = 65534

REACHED_WITHOUT = {
    "network": {"udp"},
    "filesystem": {"pathname"},  # Landlock knows these sockets from ABI 9
}
"""By layer that is off: what no second one stops. Both are required; SECURITY.md says so too."""

_CANARY = """
import ctypes, signal, sys
secret = ctypes.create_string_buffer(b"secret of another process")
print(ctypes.addressof(secret), flush=True)
signal.pause()
"""


@contextlib.contextmanager
def without(*layers: str) -> Iterator[Sandbox]:
    """A sandbox as it would be on a host that lacks these layers."""
    preload = [f"{ENTRIES}.poor", f"{ENTRIES}.resources"]
    with Sandbox(preload=preload, _disable=frozenset(layers)) as box:
        isolation = box.isolation()
        others = DEFAULT_REQUIRED - {*layers} - ({"privileges"} if "user" in layers else set())
        missing = [layer for layer in isolation.missing(others) if layer.cause]
        if missing:
            pytest.skip("; ".join(f"{layer.name}: {layer.cause}" for layer in missing))
        yield box


@contextlib.contextmanager
def canaries() -> Iterator[dict[str, Any]]:
    """What a worker must not reach, though every user of this host may: file, process, sockets."""
    folder = Path(tempfile.mkdtemp())
    user = NOBODY if os.geteuid() == 0 else None
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o777)
        file = folder / "canary"
        file.write_bytes(b"canary")
        file.chmod(0o666)
        process = stack.enter_context(
            subprocess.Popen(
                ["/usr/bin/env", "-i", _python(), "-I", "-c", _CANARY],
                stdout=subprocess.PIPE,
                user=user,
                cwd="/",
            )
            if _python()
            else subprocess.Popen(["sleep", "600"], user=user, stdout=subprocess.DEVNULL)
        )
        stack.callback(process.kill)
        address = int(process.stdout.readline()) if process.stdout else 4096
        servers = {}
        for name, family, kind, where in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0isoload-hosts-{os.getpid()}"),
            ("pathname", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
        ):
            server = servers[name] = stack.enter_context(socket.socket(family, kind))
            server.bind(where)
            server.setblocking(False)
            if kind == socket.SOCK_STREAM:
                server.listen(4)
        (folder / "socket").chmod(0o777)
        names = {
            name: server.getsockname() if name in ("tcp", "udp") else _text(server.getsockname())
            for name, server in servers.items()
        }
        yield {
            "request": {"file": str(file), "pid": process.pid, "address": address, **names},
            "file": file,
            "process": process,
            "servers": servers,
        }


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _python() -> str:
    """An interpreter that any user may run, or "": the suite's own may lie in a closed home."""
    return next((path for path in ("/usr/bin/python3",) if os.access(path, os.X_OK)), "")


def reached(canary: dict[str, Any], said: dict[str, str]) -> set[str]:
    """The attacks that got anywhere, by what is seen outside."""
    found = set()
    if [p.name for p in canary["file"].parent.iterdir() if p.name.endswith(".new")]:
        found.add("create")
    if not canary["file"].exists() or canary["file"].read_bytes() != b"canary":
        found.add("write")
    if canary["process"].poll() is not None:
        found.add("signal")
    else:
        tracer = outside.status_of(canary["process"].pid)["TracerPid"]
        found |= {"trace"} if tracer != "0" else set()
    for name, server in canary["servers"].items():
        with contextlib.suppress(BlockingIOError):
            server.recv(1) if name == "udp" else server.accept()[0].close()
            found.add(name)
    # Reading leaves no trace: there the worker is believed when it says that it did.
    silent = ("read", "list", "memory", "proc", "setuid", "mount")
    return found | {name for name in silent if said[name] == "done"}


def attacked(box: Sandbox, *layers: str) -> set[str]:
    with canaries() as canary, outside.Signals() as signals:
        reply = box.run(
            f"{ENTRIES}.poor:everything",
            json.dumps(canary["request"]).encode(),
            (),
            Limits(wall=60),
            require=DEFAULT_REQUIRED - {*layers} - {"privileges"},
        )
        found = reached(canary, json.loads(reply.data))
        if signal.SIGURG in signals.seen:
            found.add("group")
    return found


def test_with_every_layer_nothing_is_reached():
    with without() as box:
        assert attacked(box) == set()


def test_the_attacks_do_reach_what_nothing_guards():
    """The same attacks from a process that is not confined: else they would prove nothing."""
    with canaries() as canary:
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]);"
            "from tests.attacks.entries.poor import everything;"
            "sys.stdout.buffer.write(everything(sys.argv[2].encode(), [])[0])"
        )
        root = str(Path(__file__).resolve().parents[2])
        output = subprocess.run(
            [sys.executable, "-c", code, root, json.dumps(canary["request"])],
            stdout=subprocess.PIPE,
            check=True,
            start_new_session=True,
            cwd=root,
        ).stdout
        found = reached(canary, json.loads(output))
    assert found >= {
        "read",
        "list",
        "write",
        "create",
        "signal",
        "tcp",
        "udp",
        "abstract",
        "pathname",
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_with_one_layer_off_a_second_one_stops_each_attack(layer):
    with without(layer) as box:
        assert attacked(box, layer) <= REACHED_WITHOUT.get(layer, set())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_required_layer_that_is_off_is_an_error_in_words(layer):
    """Nothing runs; the error names the layer, the cause and what to do."""
    with Sandbox(preload=[f"{ENTRIES}.resources"], _disable=frozenset({layer})) as box:
        require = DEFAULT_REQUIRED | {layer}
        with pytest.raises(IsolationError) as raised:
            box.run(f"{ENTRIES}.resources:echo", b"", require=require)
        missing = {lacking.name: lacking for lacking in raised.value.missing}
        assert missing[layer].state is not State.ENFORCED
        assert missing[layer].cause
        assert layer in str(raised.value)
        assert missing[layer].cause in str(raised.value)


@pytest.mark.parametrize("layer", sorted(DEFAULT_REQUIRED))
def test_by_default_a_required_layer_is_not_given_up(layer):
    with (
        Sandbox(preload=[f"{ENTRIES}.resources"], _disable=frozenset({layer})) as box,
        pytest.raises(IsolationError, match=layer),
    ):
        box.run(f"{ENTRIES}.resources:echo", b"")


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """A bound that the zygote inherits: what the layers let through must not take the host down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    mine = sum(process.username() == psutil.Process().username() for process in _processes())
    most = mine + 300
    resource.setrlimit(resource.RLIMIT_NPROC, (most if hard < 0 else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def _processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            process.username()
            yield process


@pytest.mark.parametrize("layer", ["rlimits", "cgroup", "user", "landlock"])
@pytest.mark.parametrize("entry", ["heap", "memfds", "fork_bomb", "spin"])
def test_with_one_layer_off_resources_are_still_bounded(layer, entry):
    limits = Limits(wall=2.5, memory=256 * MIB, processes=16, cpu=1, output=32 * MIB)
    with few_processes(), without(layer) as box:
        if layer == "rlimits" and box.isolation()["cgroup"].state is State.UNAVAILABLE:
            pytest.skip("without a control group, rlimits are what bounds a worker's processes")
        known = {process.pid for process in outside.descendants()}
        with pytest.raises((LimitError, WorkerError)):
            box.run(
                f"{ENTRIES}.resources:{entry}",
                b"",
                (),
                limits,
                require=DEFAULT_REQUIRED - {layer, "privileges"},
            )
        assert outside.wait_until(lambda: not outside.new_descendants(known))


def test_an_older_landlock_is_partial_and_the_rest_holds(monkeypatch):
    """Every ABI from 0 up: the layer says what it lacks, and nothing more is reached."""
    for abi in (0, 1, 2, 3, 4, 5):
        monkeypatch.setenv("ISOLOAD_TESTS_LANDLOCK_ABI", str(abi))
        with without() as box:
            layer = box.isolation()["landlock"]
            assert layer.state is not State.ENFORCED
            assert layer.cause
            assert attacked(box) == set()
