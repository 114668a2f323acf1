"""`make demo`: an honest checkpoint and a hostile one, opened by isoload, and what came of each.

The hostile one is a pickle whose loading runs a shell command, connects to a listener of this
program, and reads a file in the home folder. The program then looks whether any of it happened.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import socket
import tempfile
import time
from typing import Any

import torch

import isoload

SECRET = "isoload-demo-secret-4f1c"


def resnet50_sized() -> dict[str, torch.Tensor]:
    """Random weights in the shapes of ResNet-50: 161 tensors, about 25.6 million numbers."""
    weights = {"conv1.weight": torch.randn(64, 3, 7, 7), **batch_norm("bn1", 64)}
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            weights[f"{name}.conv1.weight"] = torch.randn(width, channels, 1, 1)
            weights[f"{name}.conv2.weight"] = torch.randn(width, width, 3, 3)
            weights[f"{name}.conv3.weight"] = torch.randn(width * 4, width, 1, 1)
            for number, size in enumerate([width, width, width * 4], start=1):
                weights |= batch_norm(f"{name}.bn{number}", size)
            if block == 0:
                weights[f"{name}.downsample.0.weight"] = torch.randn(width * 4, channels, 1, 1)
                weights |= batch_norm(f"{name}.downsample.1", width * 4)
            channels = width * 4
    return weights | {"fc.weight": torch.randn(1000, 2048), "fc.bias": torch.randn(1000)}


def batch_norm(name: str, size: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(size), f"{name}.bias": torch.randn(size)}


class Calls:
    """An object whose unpickling calls `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def honest(folder: str) -> bool:
    path = os.path.join(folder, "resnet50.pt")
    torch.save(resnet50_sized(), path)
    started = time.perf_counter()
    expected = torch.load(path, weights_only=True)
    between = time.perf_counter()
    loaded = isoload.open(path, "cpu")
    ended = time.perf_counter()
    print(loaded.report)
    equal = list(loaded.object) == list(expected) and all(
        torch.equal(loaded.object[name], expected[name]) for name in expected
    )
    print(
        f"  {'equal' if equal else 'NOT EQUAL'} to torch.load's result; torch.load took "
        f"{(between - started) * 1000:.0f} ms, isoload {(ended - between) * 1000:.0f} ms\n"
    )
    return equal


def hostile(folder: str) -> bool:
    path, canary = os.path.join(folder, "hostile.pt"), os.path.join(folder, "canary")
    home_file = pathlib.Path.home() / f".isoload-demo-{os.getpid()}"
    home_file.write_text(SECRET)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            payload = {
                "command": Calls(os.system, f"echo pwned > {canary}"),
                "connection": Calls(socket.create_connection, listener.getsockname()),
                "secret": Calls(pathlib.Path.read_text, home_file),
                "weight": torch.randn(4),
            }
            with open(path, "wb") as file:
                torch.save(payload, file, pickle_module=pickle)
            try:
                loaded = isoload.open(path, "cpu")
                print(loaded.report)
                found = repr(loaded.object)
            except isoload.IsoloadError as error:
                found = f"{type(error).__name__}: {error}"
            listener.settimeout(0.2)
            try:
                listener.accept()[0].close()
                connected = True
            except TimeoutError:
                connected = False
    finally:
        home_file.unlink()
    print(f"  what came back: {found}")
    outcomes = {
        "the shell command ran": os.path.exists(canary),
        "the listener was reached": connected,
        "the file in the home folder was read": SECRET in found,
    }
    for what, happened in outcomes.items():
        print(f"  {what}: {'YES' if happened else 'no'}")
    return not any(outcomes.values())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        # A program's first load waits for the zygote to import torch; later ones find it running.
        path = os.path.join(folder, "tiny.pt")
        torch.save({"weight": torch.zeros(2)}, path)
        started = time.perf_counter()
        isoload.load(path, "cpu")
        print(f"The first load, of a tiny file: {time.perf_counter() - started:.1f} s\n")
        print("An honest checkpoint\n")
        well = honest(folder)
        print("A hostile checkpoint\n")
        well &= hostile(folder)
    print("\nAll as promised." if well else "\nA promise was broken.")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
