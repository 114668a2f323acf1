"""The manifest: all that a worker and its parent share.

A worker describes the object graph that it read as a flat table of nodes. The parent decodes the bytes with a
strict schema, then checks every number against the segments that it points into (`check`). Nothing here is
ever unpickled, evaluated or imported, and this module must never import anything of the worker.

A node is a plain scalar (None, bool, int of 64 bits, float, str) or one of the structs below. A node
refers to another by its index in `Manifest.nodes`; `NONE` (-1) means that there is none. Nodes that cannot be
changed once made (`Tuple`, `Size`, frozen `Set`, `Value`, `Tensor`, …) refer only to nodes before them;
containers that can (`List`, `Dict`, `Set`, `Deque`, `Opaque`, and the attributes of any node) refer to any
node, so that cycles and shared objects come back as they were.
"""

from __future__ import annotations

from typing import Union

import msgspec

NONE = -1
"""The index that refers to no node."""

SOURCE = 0
"""Segment 0: the source, as the parent handed it to the worker."""

ARENA = 1
"""Segment 1: the sealed memfd that the worker made."""

ABSENT = -1
"""A storage whose bytes do not cross: on the meta device, or the parent asked for none (inspect)."""

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "complex32", "complex64", "complex128",
    "uint8", "int8", "int16", "int32", "int64", "bool", "uint16", "uint32", "uint64",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
    "qint8", "quint8", "qint32", "quint4x2", "quint2x4",
    "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    "uint1", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7",
    "int1", "int2", "int3", "int4", "int5", "int6", "int7",
)  # fmt: skip
"""A dtype is its index here: the names of torch 2.13, in an order that is part of the schema."""

REQUIRES_GRAD = 1
CONJ = 2
NEG = 4
PARAMETER = 8
"""Bits of `flags` in a tensor node."""


class _Node(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    pass


class Bytes(_Node, tag=0):
    data: bytes


class Tuple(_Node, tag=1):
    items: list[int]


class Size(_Node, tag=2):
    """torch.Size; the dimensions themselves, not indices."""

    dims: list[int]


class List(_Node, tag=3):
    items: list[int]


class Dict(_Node, tag=4):
    """A mapping. `kind`: "" for dict, else "OrderedDict", "Counter" or "defaultdict"."""

    keys: list[int]
    values: list[int]
    kind: str = ""
    attrs: int = NONE
    factory: int = NONE


class Set(_Node, tag=5):
    items: list[int]
    frozen: bool = False


class Deque(_Node, tag=6):
    items: list[int]
    maxlen: int | None = None


class Text(_Node, tag=7):
    """A str with lone surrogates, as UTF-8 with "surrogatepass"."""

    utf8: bytes


class BigInt(_Node, tag=8):
    """An int beyond 64 bits: two's complement, little-endian."""

    data: bytes


class Complex(_Node, tag=9):
    real: float
    imag: float


class ByteArray(_Node, tag=10):
    data: bytes


class Named(_Node, tag=11):
    """A value from a fixed table. `kind`: "dtype", "layout", "qscheme", "memory_format", "device", "class" …"""

    kind: str
    name: str


class Value(_Node, tag=12):
    """A standard-library value (datetime, Decimal, Path, range, slice, …): a name from the table in
    `isoload.values` and the arguments to its constructor."""

    kind: str
    args: list[int]


class Opaque(_Node, tag=13):
    """An object of a class that the file named. `reference`: the class or function itself, not an instance."""

    name: str
    args: list[int] = []
    kwargs: dict[str, int] = {}
    state: int = NONE
    items: list[int] = []
    keys: list[int] = []
    values: list[int] = []
    reference: bool = False


class StorageValue(_Node, tag=14):
    """A storage as a value: a TypedStorage of `dtype` (an index into DTYPES), or an UntypedStorage (NONE)."""

    storage: int
    dtype: int = NONE


class Tensor(_Node, tag=20):
    """A strided tensor: view of a storage. `offset`, `size` and `stride` count elements, not bytes.

    `attrs` refers to a Dict of the tensor's own attributes (its `__dict__`)."""

    storage: int
    dtype: int
    offset: int
    size: list[int]
    stride: list[int]
    flags: int = 0
    attrs: int = NONE


class Storage(_Node):
    """Bytes that tensors share. One entry a storage of the file: two tensors alias if they share an entry."""

    segment: int
    offset: int
    nbytes: int
    location: str
    """The tag that the file saved: "cpu", "cuda:0", "mps", "meta" or any other string."""


Node = Union[
    None, bool, int, float, str, Bytes,
    Tuple, Size, List, Dict, Set, Deque, Text, BigInt, Complex, ByteArray, Named, Value, Opaque, StorageValue, Tensor,
]  # fmt: skip


class Graph(_Node):
    """An object graph: `root` is the index of the node that is the object."""

    root: int
    nodes: list[Node]
    storages: list[Storage]


class Attempt(_Node):
    """A reader that refused or failed: why, and the globals it stumbled over."""

    reader: str
    error: str
    message: str
    globals: list[str] = []


class Call(_Node):
    """What the file asked to be called, and was not: "os.system" and its arguments as short printable text."""

    name: str
    args: str


class Reading(_Node):
    """How the file was read: for the report."""

    reader: str
    container: str
    attempts: list[Attempt] = []
    globals: list[str] = []
    calls: list[Call] = []
    warnings: list[str] = []
    timings: dict[str, float] = {}


class Loaded(_Node, tag="loaded"):
    reading: Reading
    graph: Graph


class Failed(_Node, tag="failed"):
    """`kind`: "damaged", "unsupported" or "refused" (the policy's fallback ends the ladder), or "limit:<name>"."""

    kind: str
    message: str
    reading: Reading


Reply = Union[Loaded, Failed]


class Request(_Node):
    """What the parent asks of a worker. It is trusted: the parent made it.

    `fallback`: "none", "inert" or "full"; `tensors` False: no tensor bytes cross (inspect); `safe_globals`:
    the names of classes that the caller registered or allowed."""

    fallback: str
    tensors: bool = True
    max_nodes: int = 5_000_000
    max_output: int = 0
    safe_globals: list[str] = []
