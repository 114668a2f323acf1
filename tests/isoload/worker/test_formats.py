"""Each kind of checkpoint opens, told by its content, with the values that its own loader gives."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.package

from isoload.worker.recorded import Recorded

from .files import failure, legacy, read, rezipped, root, saved

WEIGHTS = {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16)}


def _same(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


class _TarPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.key if isinstance(obj, _TarTensor) else None


class _TarTensor:
    def __init__(self, key: int) -> None:
        self.key = key


def _tar(location: str = "cpu") -> bytes:
    """What torch 0.1 wrote: two tensors on one storage, and a view of that storage."""
    base = np.arange(6, dtype="<f4")
    storages = pickle.dumps(1, 2) + pickle.dumps((11, location, torch.FloatStorage), 2)
    storages += struct.pack("<q", 6) + base.tobytes() + pickle.dumps([(12, 11, 2, 3)], 2)
    tensors = pickle.dumps(2, 2)
    tensors += pickle.dumps((21, 11, torch.FloatTensor), 2)
    tensors += struct.pack("<ixxxx", 2) + struct.pack("<2q2qq", 2, 3, 3, 1, 0)
    tensors += pickle.dumps((22, 12, torch.FloatTensor), 2)
    tensors += struct.pack("<ixxxx", 1) + struct.pack("<1q1qq", 3, 1, 0)
    body = io.BytesIO()
    pickler = _TarPickler(body, 2)
    pickler.dump(OrderedDict(w=_TarTensor(21), v=_TarTensor(22)))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        parts = {"storages": storages, "tensors": tensors, "pickle": body.getvalue()}
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_a_tar_file_opens_as_torch_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "old.tar"
    path.write_bytes(_tar())
    reading = read(path.read_bytes())
    assert (reading.container, reading.reader) == ("tar", "inert")
    assert isinstance(reading.root, dict)
    _same(reading.root, torch.load(path, weights_only=False))


def test_a_tar_files_tags_and_shared_storages_are_kept() -> None:
    reading = read(_tar("cuda:1"))
    assert isinstance(reading.root, dict)
    whole, view = reading.root["w"], reading.root["v"]
    assert reading.location(whole.untyped_storage()) == "cuda:1"
    assert reading.location(view.untyped_storage()) == "cuda:1"
    assert view.data_ptr() == whole.data_ptr() + 8


def test_a_tar_file_that_torch_never_wrote_is_not_supported() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"))
    assert failure(file.getvalue()).kind == "unsupported"
    assert "readme.txt" in failure(file.getvalue()).message


def _scripted() -> tuple[torch.jit.ScriptModule, bytes]:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    scripted = torch.jit.script(module)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    return scripted, file.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_torchscript_gives_its_parameters_and_buffers(compression: int) -> None:
    scripted, data = _scripted()
    if compression:
        data = rezipped(data, lambda new, name, held: new.writestr(name, held, compression))
    reading = read(data)
    assert reading.container == "torchscript"
    made = reading.root
    assert isinstance(made, Recorded)
    assert isinstance(made.state, dict)
    found = {
        f"{child}.{name}": value
        for child in ("0", "1")
        for name, value in made.state[child].state.items()
        if isinstance(value, torch.Tensor)
    }
    expected = scripted.state_dict()
    assert set(expected) == set(found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_torchscript_of_operators_that_nobody_has_opens() -> None:
    _, data = _scripted()
    unknown = rezipped(
        data,
        lambda new, name, held: new.writestr(name, held.replace(b"torch.linear", b"nobody.knows")),
    )
    assert isinstance(read(unknown).root, Recorded)


def test_torchscript_from_before_1_4_opens() -> None:
    model = {
        "tensors": [
            {
                "dims": ["2", "3"], "offset": "0", "strides": ["3", "1"], "requiresGrad": True,
                "dataType": "FLOAT", "data": {"key": "tensors/0"}, "device": "cuda:0",
            }
        ],
        "mainModule": {
            "submodules": [{"name": "fc", "parameters": [{"name": "weight", "tensorId": "0"}]}]
        },
    }  # fmt: skip
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("old/version", b"1\n")
        archive.writestr("old/model.json", json.dumps(model))
        archive.writestr("old/tensors/0", np.arange(6, dtype="<f4").tobytes())
    reading = read(file.getvalue())
    assert isinstance(reading.root, Recorded)
    assert isinstance(reading.root.state, dict)
    weight = reading.root.state["fc"].state["weight"]
    assert torch.equal(weight, torch.arange(6.0).view(2, 3))
    assert weight.requires_grad
    assert reading.location(weight.untyped_storage()) == "cuda:0"


def test_an_exported_program_gives_its_weights(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(module, (torch.randn(4, 2),)), path)
    reading = read(path.read_bytes())
    assert reading.container == "pt2"
    assert isinstance(reading.root, dict)
    found = reading.root["state_dict"]
    expected = module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert type(found["0.weight"]) is torch.nn.Parameter
    assert type(found["1.running_mean"]) is torch.Tensor


def test_an_exported_program_from_before_2_7_gives_its_weights() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("version", "8.2")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", saved(WEIGHTS))
        archive.writestr("serialized_constants.pt", saved({}))
    reading = read(file.getvalue())
    assert reading.container == "pt2"
    assert isinstance(reading.root, dict)
    _same(reading.root["state_dict"], WEIGHTS)


def test_a_package_gives_the_objects_of_its_pickles(tmp_path: Path) -> None:
    path = tmp_path / "package.pt"
    module = torch.nn.Linear(2, 3)
    with torch.package.PackageExporter(path) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", {"module": module, "tensor": torch.arange(4.0)})
        exporter.save_text("docs", "readme.txt", "hello")
    reading = read(path.read_bytes())
    assert reading.container == "package"
    assert isinstance(reading.root, dict)
    assert torch.equal(reading.root["tensor"], torch.arange(4.0))
    held = reading.root["module"]
    assert held.name == "torch.nn.modules.linear.Linear"
    assert torch.equal(held.state["_parameters"]["weight"], module.weight)


@pytest.mark.parametrize("fallback", ["none", "inert"])
def test_safetensors_opens_as_its_library_opens_it(fallback: str) -> None:
    weights = {
        "z": torch.randn(2, 3), "a": torch.zeros(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3), "flag": torch.tensor(True),
        "f8": torch.ones(5).to(torch.float8_e4m3fn), "odd": torch.arange(3, dtype=torch.int64),
    }  # fmt: skip
    data = safetensors.torch.save(weights)
    found = read(data, fallback).root
    expected = safetensors.torch.load(data)
    assert isinstance(found, dict)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("cut", [9, 30, -1])
def test_safetensors_cut_short_is_damaged(cut: int) -> None:
    data = safetensors.torch.save({"w": torch.randn(20)})
    assert failure(data[:cut]).kind == "damaged"


def test_numpy_arrays_open_without_a_pickle() -> None:
    array = np.asfortranarray(np.random.default_rng(0).random((3, 4)))
    file = io.BytesIO()
    np.save(file, array)
    found = read(file.getvalue()).root
    assert isinstance(found, np.ndarray)
    assert found.flags.f_contiguous
    np.testing.assert_array_equal(found, array)
    assert failure(file.getvalue()[:-1]).kind == "damaged"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_archives_open_without_a_pickle(save: Any) -> None:
    file = io.BytesIO()
    save(file, a=np.arange(3), b=np.array(["x"]))
    found = read(file.getvalue()).root
    assert isinstance(found, dict)
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], np.arange(3))


def test_numpy_arrays_of_objects_stay_closed() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    assert failure(file.getvalue()).kind == "unsupported"


@pytest.mark.parametrize("write", [saved, legacy, pickle.dumps])
def test_a_checkpoint_within_gzip_opens(write: Any) -> None:
    value = {"n": 1} if write is pickle.dumps else WEIGHTS
    found = root(gzip.compress(write(value)))
    if write is pickle.dumps:
        assert found == value
    else:
        _same(found, WEIGHTS)


def test_gzip_in_parts_opens() -> None:
    data = legacy(WEIGHTS)
    parts = gzip.compress(data[:100]) + gzip.compress(data[100:])
    assert read(parts).container == "gzip/legacy"


def test_a_gzip_bomb_ends_in_a_limit() -> None:
    assert failure(gzip.compress(bytes(300 << 20), 1)).kind == "limit:output"


def test_gzip_cut_short_is_damaged() -> None:
    assert failure(gzip.compress(saved(WEIGHTS))[:-10]).kind == "damaged"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b'{"error": "not found"}\n', "JSON"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"GGUF" + bytes(50), "GGUF"),
        (bytes(4) + b"PTMF" + bytes(50), "mobile"),
        (b"just some text\n" * 20, "not a checkpoint"),
        (bytes(1000), "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_looks_like(data: bytes, words: str) -> None:
    found = failure(data)
    assert found.kind == "unsupported"
    assert words in found.message


def test_an_empty_file_is_damaged() -> None:
    assert failure(b"").message == "the file is empty"


@pytest.mark.parametrize("write", [saved, legacy])
def test_a_file_cut_anywhere_is_damaged_and_never_refused(write: Any) -> None:
    data = write({**WEIGHTS, "range": range(3)})
    for cut in (5, 20, 60, 200, len(data) // 2, len(data) - 5, len(data) - 1):
        for fallback in ("none", "inert"):
            assert failure(data[:cut], fallback).kind == "damaged", cut


@pytest.mark.parametrize("make", [_tar, lambda: _scripted()[1], lambda: pickle.dumps({"a": 1})])
def test_what_weights_only_never_opens_is_refused_where_nothing_else_may(make: Any) -> None:
    assert failure(make(), "none").kind == "refused"
