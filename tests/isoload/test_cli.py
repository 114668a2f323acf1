"""The commands, as a shell runs them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys

import pytest
import safetensors
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.isolation


def isoload(*args):
    return subprocess.run(
        [sys.executable, "-m", "isoload", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.pt"
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save(
        {"state_dict": {"a": weight, "tied": weight, "t": weight.t(), "b": torch.ones(2)}}, path
    )
    return path


@pytest.fixture
def evil(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("echo pwned",)

    path = tmp_path / "evil.pt"
    torch.save({"evil": Evil(), "a": torch.ones(2)}, path, pickle_module=pickle)
    return path


def test_inspect_shows_the_report_and_the_tensors(path):
    done = isoload("inspect", path)
    assert done.returncode == 0, done.stderr
    assert "weights_only" in done.stdout
    assert "state_dict.a" in done.stdout
    assert "2 × 3" in done.stdout


def test_inspect_json_is_one_object_a_line_on_stdout_alone(path, evil):
    done = isoload("inspect", "--json", path, evil)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["reader"] == "weights_only"
    assert first["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert second["reader"] == "inert"
    assert [call["name"] for call in second["calls"]] == ["posix.system"]
    assert "echo pwned" in second["calls"][0]["args"]


def test_a_refused_file_exits_1(evil):
    done = isoload("inspect", "--policy", "strict", "--json", evil)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["kind"] == "RefusedError"
    assert "posix.system" in done.stderr


def test_another_digest_exits_1(path):
    assert isoload("inspect", "--sha256", "0" * 64, path).returncode == 1


def test_a_missing_or_damaged_file_exits_2(tmp_path):
    assert isoload("inspect", tmp_path / "none.pt").returncode == 2
    (tmp_path / "text.pt").write_text("hello")
    done = isoload("inspect", tmp_path / "text.pt")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "args",
    [[], ["nonsense"], ["inspect"], ["inspect", "--policy", "lax", "x"], ["convert", "x", "y.bin"]],
)
def test_wrong_usage_exits_4(args):
    assert isoload(*args).returncode == 4


def test_convert_writes_safetensors_with_tied_names_and_metadata(path, tmp_path):
    out = tmp_path / "model.safetensors"
    done = isoload("convert", path, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    tensors = load_file(out)
    assert set(tensors) == {"a", "t", "b"}
    assert torch.equal(tensors["t"], tensors["a"].t())
    with safetensors.safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["tied"] == "a"
    assert metadata["isoload.source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata["format"] == "pt"


def test_convert_leaves_nothing_half_written(tmp_path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK\x03\x04 broken")
    done = isoload("convert", broken, tmp_path / "out.safetensors")
    assert done.returncode == 2
    assert os.listdir(tmp_path) == ["broken.pt"]


def test_doctor_tells_every_layer():
    done = isoload("doctor", "--json")
    layers = json.loads(done.stdout)
    assert done.returncode in (0, 3)
    assert "network" in json.dumps(layers)
    assert isoload("doctor").returncode == done.returncode
