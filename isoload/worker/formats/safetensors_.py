"""safetensors, by its own library, without a copy of the data.

The library opens paths and byte strings, and this process has no path of the source. It is given a
sparse twin in /tmp: the same header and the same length. Its checks (bounds, gaps, overlaps,
dtypes) concern those alone; the tensors are then slices of the mapping.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import math
import os
import tempfile

import safetensors
import torch

from isoload import manifest

from ..archive import first_line
from ..reading import Damaged, Reading, Unsupported
from ..torch_source import WorkerSource

_LENGTH = 8
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),
}  # fmt: skip


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """A dict of name → tensor, in the library's order."""
    reading.mapping = source.mapping
    reading.reader = "safetensors"
    header = _LENGTH + int.from_bytes(source.head(_LENGTH), "little")
    with tempfile.NamedTemporaryFile() as twin:
        twin.write(source.head(min(header, source.size)))
        twin.flush()
        os.truncate(twin.fileno(), source.size)
        try:
            with safetensors.safe_open(twin.name, "np") as opened:
                reading.root = _tensors(opened, source, header)
        except safetensors.SafetensorError as error:
            raise Damaged(f"a damaged safetensors file: {first_line(error)}") from None


def _tensors(opened: safetensors.safe_open, source: WorkerSource, start: int) -> object:
    found = {}
    for name in opened.offset_keys():
        part = opened.get_slice(name)
        shape, kind = part.get_shape(), part.get_dtype()
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise Unsupported(
                f"a safetensors file with a tensor of {kind}, which torch here does not have"
            )
        nbytes = math.prod(shape) * dtype.itemsize
        if start + nbytes > source.size:
            raise Damaged(f"tensor {name!r} ends after the file does")
        storage = source.storage[start : start + nbytes] if nbytes else torch.UntypedStorage(0)
        if storage.data_ptr() % dtype.itemsize:
            storage = storage.clone()
        found[name] = torch.empty(0, dtype=dtype).set_(storage, 0, shape, _row_major(shape))
        start += nbytes
    return {name: found[name] for name in opened.keys()}  # noqa: SIM118 - no mapping


def _row_major(shape: list[int]) -> list[int]:
    strides = [1] * len(shape)
    for index in range(len(shape) - 2, -1, -1):
        strides[index] = strides[index + 1] * max(shape[index + 1], 1)
    return strides
