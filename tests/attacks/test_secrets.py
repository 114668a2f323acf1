"""C. A worker against secrets: memory, environment, files, cores, what others have left behind."""

from __future__ import annotations

import io
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
import torch

import isoload
from isoload import manifest as m
from sandbox import Sandbox, WorkerError, check_segment, create_memfd, seal
from tests.attacks import outside
from tests.attacks.conftest import calling

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("unharmed")]

SANDBOXES = ("box", "taken_over", "loader")
ROOT = Path(__file__).resolve().parents[2]


def canary() -> str:
    return "ISOLOAD-CANARY-" + secrets.token_hex(16)


def test_the_parents_heap_and_environment_are_not_in_the_worker():
    """Line 17: canaries in memory, in the environment and in argv, of a parent that then starts."""
    code = """
import json, os, sys
heap = [os.environ["ISOLOAD_SECRET"] + "!" for _ in range(1000)]
os.environ["ISOLOAD_OTHER"] = heap[0]
from sandbox import Limits, Sandbox
with Sandbox(preload=["tests.attacks.entries.secrets"]) as box:
    attack = "tests.attacks.entries.secrets:"
    found = json.loads(box.run(attack + "memory", b"", (), Limits(wall=60)).data)
    assert found["found"] == [], found
    assert found["searched"] > 1 << 24, found
    mine = "%032x" % 7
    reply = box.run(attack + "own_memory_shows", mine.encode(), (), Limits(wall=60))
    found = json.loads(reply.data)
    assert found["found"] == ["ISOLOAD-CANARY-" + mine], found
"""
    environment = {**os.environ, "ISOLOAD_SECRET": canary()}
    command = [sys.executable, "-c", code, canary()]
    subprocess.run(command, check=True, timeout=180, cwd=ROOT, env=environment)


def test_the_zygote_was_given_nothing_of_the_callers(box):
    """Line 17: its command line and its environment, read from outside."""
    os.environ["ISOLOAD_SECRET"] = secret = canary()
    try:
        with Sandbox() as other:
            other.isolation()
            for sandbox in (box, other):
                zygote = psutil.Process(sandbox._zygote.pid)
                assert secret not in str(zygote.cmdline())
                assert not set(sys.argv[1:]) & set(zygote.cmdline())
                try:
                    environment = Path(f"/proc/{zygote.pid}/environ").read_bytes()
                except PermissionError:
                    continue  # it is not dumpable: its own user may not look either
                assert secret.encode() not in environment
                assert b"PYTEST_CURRENT_TEST" not in environment
    finally:
        del os.environ["ISOLOAD_SECRET"]


def test_no_file_of_the_host_is_there(attack, tmp_path):
    """Line 18: homes, keys, the working folder, /etc, /proc, /sys, /run, devices."""
    (tmp_path / "secret").write_text("secret")
    home = Path.home()
    paths = [
        str(home), f"{home}/.ssh", f"{home}/.ssh/id_rsa", f"{home}/.bashrc", "/root", "/home",
        os.getcwd(), str(ROOT), str(tmp_path), str(tmp_path / "secret"), sys.prefix, sys.executable,
        "/etc", "/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/machine-id",
        "/proc", "/proc/1/cmdline", "/proc/self/environ", "/proc/self/fd", "/proc/self/maps",
        f"/proc/{os.getpid()}/environ", "/proc/kcore", "/proc/sys/kernel/core_pattern",
        "/sys", "/sys/fs/cgroup", "/sys/class/net", "/run", "/run/docker.sock", "/var",
        "/var/run/docker.sock", "/boot", "/mnt", "/opt", "/srv", "/usr/bin", "/bin", "/sbin",
        "/dev/shm", "/dev/pts", "/dev/mem", "/dev/kvm", "/dev/vsock", "/dev/nvidia0", "/dev/fuse",
        "/jail", "/..", "/../jail", "/../../etc/passwd", "/proc/1/root", "/oldroot",
    ]  # fmt: skip
    seen = attack("secrets:files", paths)
    there = {path for path, tried in seen["tried"].items() if tried["stat"] == "done"}
    assert there <= {"/.."}
    assert not [path for path, tried in seen["tried"].items() if tried["create"] == "done"]
    assert {folder for folder in seen["writable"] if not folder.startswith("/tmp")} == set()


def test_seen_from_outside_its_root_is_almost_empty(box):
    """Line 18: what lies in the worker's root, past the Landlock that hides it from the worker."""
    with outside.held(box) as worker:
        root = Path(f"/proc/{worker.pid}/root")
        try:
            top = {path.name for path in root.iterdir()}
        except PermissionError:
            pytest.skip("only root may look into a process that is not dumpable")
        usr = root / "usr"
        assert top <= {"dev", "lib", "lib32", "lib64", "libx32", "python", "tmp", "usr"}
        assert {path.name for path in (root / "dev").iterdir()} == {"null", "urandom", "zero"}
        assert list((root / "tmp").iterdir()) == []
        assert not usr.exists() or {path.name for path in usr.iterdir()} <= {
            "lib", "lib32", "lib64", "libx32",
        }  # fmt: skip
        mounts = Path(f"/proc/{worker.pid}/mountinfo").read_text().splitlines()
    for mount in mounts:
        point, options = mount.split()[4:6]
        assert {"nosuid"} <= {*options.split(",")}
        assert point.endswith("/tmp") or "ro" in options.split(","), mount


def test_of_a_checkout_only_the_packages_are_there(attack):
    """Line 18: tests and sandbox were imported from a checkout, whose other files are not seen."""
    names = [path.name for path in ROOT.iterdir() if path.name not in ("tests", "sandbox")]
    folders = ["/python/own0", "/python/own1"]
    paths = [f"{folder}/{name}" for folder in folders for name in names]
    seen = attack("secrets:files", [path for path in paths if not path.endswith("isoload")])
    assert {tried["stat"] for tried in seen["tried"].values()} == {"ENOENT"}


def test_no_core_is_left(run, tmp_path, monkeypatch):
    """Line 19: a worker that makes itself dumpable, asks for cores without bound, and faults."""
    monkeypatch.chdir(tmp_path)
    secret = canary()
    with pytest.raises(WorkerError) as raised:
        run("kernel:crash", secret.encode())
    assert raised.value.signal in (signal.SIGSEGV, None)
    assert list(tmp_path.iterdir()) == []
    assert not [p for p in Path("/tmp").glob("core*") if p.stat().st_size]


def test_the_limit_on_cores_is_held_from_outside(box):
    """Line 19: no core by size, and not dumpable: a core_pattern that is a pipe is not called."""
    with outside.held(box) as worker:
        limits = Path(f"/proc/{worker.pid}/limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"]
        # What is in /proc/PID of a process that is not dumpable is not its own user's. proc(5)
        assert os.stat(f"/proc/{worker.pid}/mem").st_uid != os.stat(f"/proc/{worker.pid}").st_uid


def test_the_last_page_of_the_source_holds_nothing_else(attack):
    """Line 20: a snapshot's bytes after its end, where a reused page would show old memory."""
    fd = create_memfd("source")
    try:
        os.write(fd, b"x" * 5000)
        seal(fd)
        assert attack("secrets:beyond_the_end", fds=[fd])["rest"] == ""
    finally:
        os.close(fd)


def test_one_files_bytes_are_not_in_the_next_ones_worker(taken_over):
    """Line 20: the worker after the one that read a secret searches all of its memory."""
    secret = canary().encode()
    with pytest.raises(isoload.IsoloadError):
        taken_over.load(calling("resources:echo", secret * 1000))
    found = json.loads(_detail(taken_over, calling("secrets:memory")))
    assert found["found"] == []


def _detail(loader, data):
    """What an entry that does not send a manifest replied, through the Loader's own sandbox."""
    fd = create_memfd("order")
    try:
        os.write(fd, data)
        return loader._boxes.light.run("ignored:ignored", b"", [fd]).data
    finally:
        os.close(fd)


def test_an_arena_holds_nothing_but_what_the_file_has(loader):
    """Line 20: between and after an honest worker's tensors there is the file itself, or zeros."""
    buffer = io.BytesIO()
    sevens = {f"w{n}": torch.full((8 * n,), 7, dtype=torch.uint8) for n in range(1, 40)}
    weights = {name: tensor.view(torch.float64) for name, tensor in sevens.items()}
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    arenas = 0
    source = create_memfd("source")
    try:
        os.write(source, buffer.getvalue())
        for lead in (0, 1):  # in one of the two no storage lies aligned
            order = m.Request(fallback="inert", max_output=1 << 20, lead=lead)
            reply = loader._boxes.light.run(
                "isoload.worker.light:main", msgspec.msgpack.encode(order), [source]
            )
            for fd in reply.fds:
                arenas += 1
                data = os.pread(fd, check_segment(fd, 1 << 20), 0)
                os.close(fd)
                for start in range(0, len(data), 16):
                    piece = data[start : start + 16]
                    assert set(piece) <= {0, 7} or piece in buffer.getvalue()
    finally:
        os.close(source)
    assert arenas
