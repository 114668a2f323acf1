"""The checkpoints that are measured: each is made once, and kept in the folder for the next run."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MB = 1 << 20
GB = 1 << 30


@dataclass(frozen=True)
class File:
    """One checkpoint. `tensors` and `nbytes` say what it holds; `flat`: a dict of tensors."""

    name: str
    path: Path
    tensors: int
    nbytes: int
    flat: bool = True
    legacy: bool = False
    module: bool = False

    @property
    def safetensors(self) -> Path:
        return self.path.with_suffix(".safetensors")


def _flat(count: int, nbytes: int) -> dict[str, torch.Tensor]:
    """`count` tensors of `nbytes` in all, of numbers that are no zero pages."""
    numel = nbytes // count // 4
    block = torch.arange(numel, dtype=torch.float32)
    return OrderedDict((f"layers.{i}.block.weight", block + i) for i in range(count))


def _training(params: int) -> dict[str, Any]:
    """A training checkpoint: weights, and Adam's state of them with nested dicts and scalars."""
    weights = _flat(params, params * 4096)
    moments = {
        i: {
            "step": torch.tensor(1.0),
            "exp_avg": torch.full_like(weight, 0.1),
            "exp_avg_sq": torch.full_like(weight, 0.2),
        }
        for i, weight in enumerate(weights.values())
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "params": list(range(params))}
    optimizer = {"state": moments, "param_groups": [group]}
    history = [{"epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(100)]
    return {"epoch": 100, "model": weights, "optimizer": optimizer, "history": history}


def _module() -> torch.nn.Module:
    """A convolutional network of torch's own classes, about 25 MB."""
    layers: list[torch.nn.Module] = []
    for i in range(10):
        layers += [torch.nn.Conv2d(264, 264, 3, bias=i % 2 == 0), torch.nn.BatchNorm2d(264)]
        layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def state_dict_file(folder: Path, name: str, tensors: int, nbytes: int) -> File:
    """A plain state dict in a zip, with its safetensors twin."""
    file = File(name, folder / f"{tensors}-{nbytes}.pt", tensors, nbytes)
    if not file.safetensors.exists():
        state = _flat(tensors, nbytes)
        _save(file.path, lambda path: torch.save(state, path))
        _save(file.safetensors, lambda path: save_file(dict(state), path))
    return file


def make_files(folder: Path, *, quick: bool) -> list[File]:
    """Every file of the table, small ones first. `quick` leaves out the one of 4 GB."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        state_dict_file(folder, "80 KB, 20 tensors", 20, 80 << 10),
        state_dict_file(folder, "1,000 small tensors", 1_000, 1_000 * 64),
        state_dict_file(folder, "10,000 small tensors", 10_000, 10_000 * 64),
        _other(folder, "training, 3,000 tensors", "training.pt", 3_000, lambda: _training(750)),
        _other(folder, "pickled module, 25 MB", "module.pt", 70, _module, module=True),
        _other(
            folder,
            "legacy, 200 MB",
            "legacy.pt",
            100,
            lambda: _flat(100, 200 * MB),
            legacy=True,
        ),
        state_dict_file(folder, "200 MB, 100 tensors", 100, 200 * MB),
        state_dict_file(folder, "1 GB, 16 tensors", 16, GB),
    ]
    if not quick:
        files.append(state_dict_file(folder, "4 GB, 300 tensors", 300, 4 * GB))
    return files


def _other(
    folder: Path,
    name: str,
    file_name: str,
    tensors: int,
    make: Callable[[], Any],
    *,
    legacy: bool = False,
    module: bool = False,
) -> File:
    path = folder / file_name
    if not path.exists():
        _save(path, lambda to: torch.save(make(), to, _use_new_zipfile_serialization=not legacy))
    return File(name, path, tensors, path.stat().st_size, False, legacy, module)


def _save(path: Path, save: Callable[[str], None]) -> None:
    unfinished = f"{path}.part"
    save(unfinished)
    os.replace(unfinished, path)


def keep_in_cache(path: Path) -> None:
    """Read the file once: every contender finds it in the page cache."""
    buffer = bytearray(16 * MB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
