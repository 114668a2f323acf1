"""numpy's .npy and .npz. Arrays of objects are pickles, and stay closed (allow_pickle off)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isoload import manifest

from ..archive import first_line
from ..reading import Damaged, Reading, Unsupported
from ..source import MappedFile
from ..torch_source import WorkerSource
from .members import Members

MAGIC = b"\x93NUMPY"


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """An .npy file: one array."""
    reading.mapping = source.mapping
    reading.reader = "numpy"
    reading.root = parse(source.view)


def read_npz(members: Members, reading: Reading) -> None:
    """An .npz file: a dict of name → array."""
    reading.container = "npz"
    reading.reader = "numpy"
    arrays = {}
    for name in members.names:
        data = members.read(name)
        if data.startswith(MAGIC):
            arrays[name.removesuffix(".npy")] = parse(memoryview(data))
        else:
            arrays[name] = np.frombuffer(data, np.uint8)
    reading.root = arrays


def parse(view: memoryview) -> np.ndarray[Any, Any]:
    """The array in the bytes of an .npy file, without a copy."""
    file = MappedFile(view)
    try:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise Unsupported(f"an .npy file of version {version}")
        shape, fortran, dtype = reader(file)
    except ValueError as error:
        raise Damaged(f"a damaged .npy file: {first_line(error)}") from None
    if dtype.hasobject:
        raise Unsupported("an .npy file of Python objects: it is a pickle inside, and stays closed")
    count = math.prod(shape)
    start = file.tell()
    end = start + count * dtype.itemsize
    if end > len(view):
        raise Damaged(f"an .npy file is cut off: it should have {end} bytes, it has {len(view)}")
    if not count or not dtype.itemsize:
        return np.empty(shape, dtype)
    flat = np.frombuffer(view, dtype, count, start)
    return flat.reshape(shape, order="F" if fortran else "C")
