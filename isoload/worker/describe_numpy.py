"""numpy's dtypes, scalars and arrays, as manifest nodes. Arrays of objects are the walk's own
affair."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoload import manifest as m
from isoload.values import simple_dtype

from .arena import Blob
from .storages import StorageTable


class ArrayWriter:
    """Appends to `nodes`; an array's bytes go to the arena."""

    def __init__(self, nodes: list[Any], storages: StorageTable) -> None:
        self._nodes = nodes
        self._storages = storages
        self._dtypes: dict[Any, int] = {}

    def describe(self, value: Any) -> int | None:
        """The node of a dtype, scalar or array; None if there is no node for its kind."""
        if isinstance(value, np.dtype):
            return self._dtype(value)
        dtype = self._dtype(value.dtype)
        if dtype is None:
            return None
        if isinstance(value, np.generic):
            return self._add(m.NumpyScalar(dtype, value.tobytes()))
        if type(value) is not np.ndarray:
            return None
        fortran = bool(value.flags.fnc)
        # Contiguous in its own order, so that its bytes are those of the buffer.
        flat = np.require(value, requirements=["F" if fortran else "C"])
        storage = self._storages.add_bytes(_blob_of(flat))
        return self._add(m.NdArray(storage, dtype, list(value.shape), fortran))

    def _add(self, node: Any) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _dtype(self, dtype: np.dtype[Any]) -> int | None:
        key = (dtype, dtype.str, repr(dtype))
        if key not in self._dtypes:
            node = self._dtype_node(dtype)
            if node is None:
                return None
            self._dtypes[key] = self._add(node)
        return self._dtypes[key]

    def _dtype_node(self, dtype: np.dtype[Any]) -> m.NumpyDtype | None:
        if dtype.hasobject or dtype.metadata:
            return None
        if dtype.names is not None and dtype.fields is not None:
            described = [dtype.fields[name] for name in dtype.names]
            if any(len(entry) > 2 for entry in described):
                return None  # titles
            fields = [self._dtype(entry[0]) for entry in described]
            offsets = tuple(entry[1] for entry in described)
            if None in fields or not fields:
                return None
            found = tuple(field for field in fields if field is not None)
            aligned = dtype.isalignedstruct
            return m.NumpyDtype("", dtype.names, found, offsets, dtype.itemsize, (), aligned)
        if dtype.subdtype is not None:
            base = self._dtype(dtype.subdtype[0])
            return None if base is None else m.NumpyDtype("", (), (base,), shape=dtype.shape)
        try:
            known = simple_dtype(dtype.str)
        except (ValueError, TypeError):
            return None
        return m.NumpyDtype(dtype.str) if known == dtype else None


def _blob_of(flat: np.ndarray[Any, Any]) -> Blob:
    def view() -> memoryview:
        order: Any = flat if flat.flags.c_contiguous else flat.T
        return memoryview(order.reshape(-1).view(np.uint8)) if flat.nbytes else memoryview(b"")

    return Blob(-1, flat.__array_interface__["data"][0], flat.nbytes, view)
