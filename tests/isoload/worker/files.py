"""Files for the readers' tests: made in memory, and read in this process without running code."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from isoload import manifest
from isoload.worker import readers
from isoload.worker.context import Context
from isoload.worker.inert import InertUnpickler
from isoload.worker.reading import Failure, Reading
from isoload.worker.tags import Tags
from isoload.worker.torch_source import WorkerSource

CORPUS = Path(__file__).resolve().parents[4] / "shared" / "corpus"


def corpus(name: str) -> Path:
    """A folder of the corpus, or a skip that says so."""
    folder = CORPUS / name
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    return folder


def saved(value: object, **options: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def legacy(value: object, **options: Any) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False, **options)


@contextlib.contextmanager
def source_of(data: bytes) -> Iterator[WorkerSource]:
    """The bytes behind a descriptor, as the worker gets them."""
    fd = os.memfd_create("test")
    try:
        os.write(fd, data)
        yield WorkerSource(fd)
    finally:
        os.close(fd)


def read(
    data: bytes, fallback: str = "inert", *, tensors: bool = True, safe: tuple[str, ...] = ()
) -> Reading:
    """Read bytes as a worker would, but in this process: never by the full reader."""
    assert fallback != "full"
    request = manifest.Request(fallback=fallback, tensors=tensors, safe_globals=list(safe))
    with source_of(data) as source:
        return readers.read(source, request)


def root(data: bytes) -> Any:
    """The object itself."""
    return read(data).root


def failure(data: bytes, fallback: str = "inert") -> Failure:
    """The Failure that reading must end in."""
    with pytest.raises(Failure) as caught:
        read(data, fallback)
    return caught.value


def unpickle(data: bytes) -> tuple[Any, Reading]:
    """What the inert unpickler makes of a pickle, and its report."""
    reading = Reading()
    return InertUnpickler(data, Context(reading, Tags())).load(), reading


def rezipped(data: bytes, write: Callable[[zipfile.ZipFile, str, bytes], None]) -> bytes:
    """The same records, each written again by `write`."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            write(new, name, old.read(name))
    return file.getvalue()
