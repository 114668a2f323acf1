"""`isoload convert FILE OUT.safetensors`: the weights of any checkpoint as safetensors.

Names that stand for the very same tensor are written once, and the metadata maps each other name to
the one kept, as `safetensors.torch.save_model` does. Other views of a shared storage are written
apart.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..default import open as open_checkpoint
from ..errors import CheckpointError, IsoloadError
from ..opaque import find_state_dict
from ..source import check_sha256
from .exits import USAGE, WELL, add_load_options, policy_of, say, status_of


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("convert", help="write a checkpoint's weights as safetensors")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--key", help="where the weights are, if the file holds more than one set")
    add_load_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert one file; OUT appears whole or not at all."""
    try:
        check_sha256(args.sha256)
        if not args.out.endswith(".safetensors"):
            raise ValueError(f"{args.out}: the output's name must end in .safetensors")
    except ValueError as error:
        say(f"isoload convert: {error}")
        return USAGE
    try:
        _convert(args)
    except (IsoloadError, OSError) as error:
        say(f"isoload convert: {error}")
        return status_of(error)
    return WELL


def _convert(args: argparse.Namespace) -> None:
    # Hashed first and demanded of the load, so that the digest in the metadata is that of the bytes
    # read.
    digest = args.sha256 or _sha256(args.file)
    loaded = open_checkpoint(args.file, "cpu", sha256=digest, policy=policy_of(args))
    try:
        weights = find_state_dict(loaded.object, args.key)
    except CheckpointError as error:
        raise CheckpointError(f"{loaded.report.source}: {error}") from error
    tensors, aliases = _untie(weights)
    metadata = {
        **aliases,
        "format": "pt",
        "isoload.source_sha256": digest.lower(),
        "isoload.reader": loaded.report.reader,
        "isoload.container": loaded.report.container,
    }
    total = sum(tensor.nbytes for tensor in tensors.values())
    with _replacing(args.out) as temporary, _progress(temporary, total):
        try:
            save_file(tensors, temporary, metadata)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{loaded.report.source}: safetensors cannot hold its weights: {error}"
            ) from error
    say(f"{args.out}: {len(tensors)} tensors, {total:,} bytes, {len(aliases)} tied names")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _untie(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors to write, none sharing memory with another, and the other names of those kept."""
    kept: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, weight in weights.items():
        tensor = weight.detach()
        storage = tensor.untyped_storage()
        place = (
            storage.data_ptr(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        if storage.nbytes() and place in kept:
            aliases[name] = kept[place]
            continue
        kept[place] = name
        shares = storage.nbytes() > 0 and storage.data_ptr() in storages
        storages.add(storage.data_ptr())
        tensors[name] = (
            tensor.clone(memory_format=torch.contiguous_format) if shares else tensor.contiguous()
        )
    return tensors, aliases


@contextmanager
def _replacing(out: str) -> Iterator[str]:
    """A temporary file beside `out` that takes its place at the end, or is removed."""
    folder = os.path.dirname(os.path.abspath(out))
    fd, temporary = tempfile.mkstemp(prefix=".isoload-", suffix=".safetensors", dir=folder)
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(
            fd, 0o666 & ~mask
        )  # mkstemp gives 0600: the result has the rights of any new file
        yield temporary
        os.fsync(fd)
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


@contextmanager
def _progress(path: str, total: int) -> Iterator[None]:
    """A bar on stderr, where that is a terminal, that follows the growing file."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("writing", total=total)

        def follow() -> None:
            while not done.wait(0.1):
                progress.update(task, completed=os.stat(path).st_size)

        thread = threading.Thread(target=follow, name="isoload-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
