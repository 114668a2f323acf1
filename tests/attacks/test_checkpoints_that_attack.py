"""End to end: checkpoints whose pickles run an attacker's code under the full reader.

They get there by nesting pickles deeper than the inert reader follows them.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch

import isoload
from tests.attacks import outside

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("unharmed")]

SANDBOXES = ("loader",)
WALL = 20.0
DEPTH = 20


class Runs:
    """Unpickled: the value of an expression, evaluated by whoever unpickles it."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self):
        return eval, (f"(exec({self.code!r}, {{}}), 42)[1]",)


class Nested:
    """Unpickled: what another checkpoint holds."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def save(obj: object, *, legacy: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def checkpoint(code: str, *, legacy: bool = False) -> bytes:
    """A file that runs the code when it is fully unpickled, and then holds weights."""
    data = save([Runs(code), torch.ones(3)], legacy=legacy)
    for _ in range(DEPTH):
        data = save(Nested(data), legacy=legacy)
    return data


REACH = """
import os, signal, socket, contextlib
target = {target}
for pid in (0, -1, target["pid"]):
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGUSR1)
for path in target["paths"]:
    with contextlib.suppress(OSError):
        open(path, "a").write("attacked")
with contextlib.suppress(OSError):
    socket.create_connection(target["tcp"], 1).send(b"attacked")
os.system("touch " + target["paths"][0])
"""
POISONS = {
    "the describer": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("isoload.worker"):
        for key, value in list(vars(module).items()):
            if callable(value) and not isinstance(value, type):
                setattr(module, key, lambda *a, **k: (b"attacked", []))
""",
    "the encoder": """
import msgspec
msgspec.msgpack.encode = lambda *a, **k: b"\\x93" * 1000
class Encoder:
    def encode(self, *a): return b"\\xff" * 1000
msgspec.msgpack.Encoder = Encoder
import isoload.manifest as m
m._encoder = Encoder()
""",
    "os and json": """
import os, json, socket, struct
os.memfd_create = lambda *a: 0
os.write = lambda *a: 1 << 62
struct.pack = lambda *a: b""
socket.socket.sendall = socket.socket.send
""",
    "tensors": """
import torch
torch.Tensor.data_ptr = lambda self: 1 << 62
torch.Tensor.storage_offset = lambda self: -5
torch.Tensor.stride = lambda self, *a: (1 << 62,)
torch.UntypedStorage.nbytes = lambda self: 1 << 62
""",
    "the exit": "import os\nos._exit(0)",
    "an exit in Python": "raise SystemExit(0)",
    "a stop": "raise KeyboardInterrupt",
    "a crash": "import ctypes\nctypes.memset(8, 1, 1)",
    "a daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(3600)
""",
    "a loop": "while True: pass",
    "threads": """
import threading, time
for _ in range(1000):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
""",
    "output": "print('\\x1b[2J attacked'); import sys; sys.stderr.write('attacked')",
}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_files_code_runs_and_reaches_nothing(loader, tmp_path, legacy, capfd):
    """Lines 7, 13, 17 and 18: it ran, confined, and nothing outside was touched."""
    with socket.create_server(("127.0.0.1", 0)) as server, outside.Signals() as signals:
        server.setblocking(False)
        home = Path.home() / f".isoload-attack-{os.getpid()}"
        target = {
            "pid": os.getpid(),
            "paths": [str(tmp_path / "attacked"), str(home), "/etc/passwd", "attacked"],
            "tcp": server.getsockname(),
        }
        before = Path("/etc/passwd").read_bytes()
        code = REACH.format(target=json.dumps(target))
        loaded = loader.open(checkpoint(code, legacy=legacy), "cpu")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert loaded.report.reader == "full"
    assert loaded.object[0] == 42
    assert loaded.object[1].tolist() == [1, 1, 1]
    assert signals.seen == []
    assert not home.exists()
    assert not Path("attacked").exists()
    assert list(tmp_path.iterdir()) == []
    assert Path("/etc/passwd").read_bytes() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("policy", [isoload.Policy.strict(), isoload.Policy.upload()])
def test_a_policy_below_full_runs_none_of_it(loader, policy):
    """Line 5: the same file under the policies that never run a file's code."""
    with pytest.raises(isoload.RefusedError):
        loader.load(checkpoint("raise SystemExit"), policy=policy)


@pytest.mark.parametrize("poison", POISONS)
def test_a_worker_poisoned_by_its_file_is_believed_nothing(loader, poison):
    """Lines 4, 23, 25, 30 and 33: a well-formed object or an IsoloadError, in time."""
    policy = isoload.Policy(limits=isoload.Limits(wall=WALL, cpu=3, processes=16))
    started = time.monotonic()
    try:
        loaded = loader.open(checkpoint(POISONS[poison]), "cpu", policy=policy)
    except isoload.InternalError:
        raise
    except isoload.IsoloadError as error:
        text = str(error)
        assert "\x1b" not in text
        assert "Traceback" not in text
    else:
        assert loaded.report.reader == "full"
        assert isinstance(loaded.object, list)
    assert time.monotonic() - started < WALL + outside.PATIENCE


def test_the_next_file_is_read_by_a_worker_that_knows_nothing_of_it(loader):
    """Line 20: what one file has poisoned, the next one's worker does not have."""
    for poison in ("the describer", "tensors"):
        with _either():
            loader.load(checkpoint(POISONS[poison]), "cpu")
        assert loader.load(save({"a": torch.arange(4)}, legacy=False), "cpu")["a"].tolist() == [
            0, 1, 2, 3,
        ]  # fmt: skip


class _either:
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> bool:
        return kind is not None and issubclass(kind, isoload.IsoloadError)
