"""The manifest: all that a worker and its parent share.

A worker describes the object graph that it read as a flat table of nodes. The parent decodes the
bytes with a strict schema, then checks every number against the segments that it points into.
Nothing here is ever unpickled, evaluated or imported, and this module must never import anything of
the worker.

A node is a plain scalar (None, bool, int of 64 bits, float, str) or one of the structs below. A
node refers to another by its index in `Graph.nodes`; `NONE` (-1) means that there is none. Nodes
that cannot be changed once made (`Tuple`, `Size`, frozen `Set`, `Value`, `Tensor`, …) refer only to
nodes before them; those that can (`List`, `Dict`, `Set`, `Deque`, `Namespace`, `ObjectArray`, the
state and the items of an `Opaque`, and the attributes of any node) refer to any node, so that
cycles and shared objects come back as they were.

`isoload.wire` has the bytes and is strict about the form. The arithmetic is in `isoload.check`,
which must pass before `isoload.rebuild` may use a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

import msgspec

NONE = -1
"""The index that refers to no node."""

SOURCE = 0
"""Segment 0: the source, as the parent handed it to the worker."""

ARENA = 1
"""Segment 1: the sealed memfd that the worker made."""

ABSENT = -1
"""A storage whose bytes do not cross: on the meta device, or the parent asked for none
(inspect)."""

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file from before torch 1.6 begins: torch.serialization.MAGIC_NUMBER as a pickle."""

MAX_NODES = 5_000_000
"""Nodes that a graph may hold, unless the caller says otherwise."""


class ManifestError(Exception):
    """A reply breaks the schema, or points outside its segments: the worker is broken or
    hostile."""


DTYPES = (
    "float32", "float64", "float16", "bfloat16", "complex32", "complex64", "complex128",
    "uint8", "int8", "int16", "int32", "int64", "bool", "uint16", "uint32", "uint64",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2",
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


class Struct(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


class Bytes(Struct, tag=0):
    data: bytes


class Tuple(Struct, tag=1):
    items: list[int]


class Size(Struct, tag=2):
    """torch.Size; the dimensions themselves, not indices."""

    dims: list[int]


class List(Struct, tag=3):
    items: list[int]


class Dict(Struct, tag=4):
    """A mapping. `kind`: "" for dict, else "OrderedDict", "Counter" or "defaultdict"."""

    keys: list[int]
    values: list[int]
    kind: str = ""
    attrs: int = NONE
    factory: int = NONE


class Set(Struct, tag=5):
    items: list[int]
    frozen: bool = False


class Deque(Struct, tag=6):
    items: list[int]
    maxlen: int | None = None


class Text(Struct, tag=7):
    """A str with lone surrogates, as UTF-8 with "surrogatepass"."""

    utf8: bytes


class BigInt(Struct, tag=8):
    """An int beyond 64 bits: two's complement, little-endian."""

    data: bytes


class Complex(Struct, tag=9):
    real: float
    imag: float


class ByteArray(Struct, tag=10):
    data: bytes


class Named(Struct, tag=11):
    """A value from a fixed table (`isoload.values`). `kind`: "dtype", "layout", "qscheme",
    "memory_format", "device", "storage_type", "constant" or "global"."""

    kind: str
    name: str


class Value(Struct, tag=12):
    """A standard-library value (datetime, Decimal, Path, range, slice, …): a name from the table in
    `isoload.values`, and the arguments that its constructor there takes."""

    kind: str
    args: list[int]


class Opaque(Struct, tag=13):
    """An object of a class that the file named, or (`reference`) that class or function itself.

    `args` and `kwargs` refer to nodes before it: they existed before the object did. The rest may
    refer to any node: `state` is what BUILD set, `items` what a list, tuple or set held (or the one
    value of a str or int), `keys` and `values` what a mapping held."""

    name: str
    args: tuple[int, ...] = ()
    kwargs: dict[str, int] = {}
    state: int = NONE
    items: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    reference: bool = False


class StorageValue(Struct, tag=14):
    """A storage as a value: a TypedStorage of `dtype` (an index into DTYPES), or an UntypedStorage
    (NONE)."""

    storage: int
    dtype: int = NONE


class Namespace(Struct, tag=15):
    """A bag of attributes: `kind` is "types.SimpleNamespace" or "argparse.Namespace"; `attrs` is a
    Dict."""

    kind: str
    attrs: int


class NumpyDtype(Struct, tag=16):
    """A numpy dtype. Plain: `code` is its typestr ("<f4", "|S7", "<M8[ns]"). A record: `names` with
    the NumpyDtype nodes `fields` at the byte `offsets`, `itemsize` bytes in all. A subarray: the
    one node in `fields`, and `shape`."""

    code: str
    names: tuple[str, ...] = ()
    fields: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()
    itemsize: int = 0
    shape: tuple[int, ...] = ()
    aligned: bool = False


class NumpyScalar(Struct, tag=17):
    """A numpy scalar: a NumpyDtype node and the item's bytes."""

    dtype: int
    data: bytes


class NdArray(Struct, tag=18):
    """A numpy array over a storage: C order, or Fortran order."""

    storage: int
    dtype: int
    shape: list[int]
    fortran: bool = False


class ObjectArray(Struct, tag=19):
    """A numpy array of objects: the items in C order, whatever the memory's order."""

    shape: list[int]
    items: list[int]
    fortran: bool = False


class Tensor(Struct, tag=20):
    """A strided tensor: view of a storage. `offset`, `size` and `stride` count elements, not bytes.

    `attrs` refers to a Dict of the tensor's own attributes (its `__dict__`)."""

    storage: int
    dtype: int
    offset: int
    size: list[int]
    stride: list[int]
    flags: int = 0
    attrs: int = NONE


class Quantized(Struct, tag=21):
    """A quantized strided tensor. Per tensor (`axis` NONE): `scale` and `zero_point`. Per channel:
    the tensor nodes `scales` and `zero_points`, one value for each index of `axis`; float zero
    points mean the float-qparams scheme."""

    storage: int
    dtype: int
    offset: int
    size: list[int]
    stride: list[int]
    flags: int = 0
    attrs: int = NONE
    scale: float = 1.0
    zero_point: int = 0
    axis: int = NONE
    scales: int = NONE
    zero_points: int = NONE


class SparseCoo(Struct, tag=22):
    """A sparse COO tensor of the tensor nodes `indices` and `values`."""

    indices: int
    values: int
    size: list[int]
    coalesced: bool
    flags: int = 0
    attrs: int = NONE


class SparseCompressed(Struct, tag=23):
    """A compressed sparse tensor: `layout` is "sparse_csr", "sparse_csc", "sparse_bsr" or
    "sparse_bsc"."""

    layout: str
    compressed: int
    plain: int
    values: int
    size: list[int]
    flags: int = 0
    attrs: int = NONE


class NestedStrided(Struct, tag=24):
    """A nested tensor of strided layout: a flat `buffer`, and where each component lies in it
    (tensor nodes)."""

    buffer: int
    sizes: int
    strides: int
    offsets: int
    flags: int = 0
    attrs: int = NONE


class NestedJagged(Struct, tag=25):
    """A nested tensor of jagged layout (tensor nodes; `lengths` may be NONE). `min_seqlen` and
    `max_seqlen` are what the tensor had cached, else NONE."""

    values: int
    offsets: int
    lengths: int = NONE
    ragged: int = 1
    min_seqlen: int = NONE
    max_seqlen: int = NONE
    flags: int = 0
    attrs: int = NONE


class Subclass(Struct, tag=26):
    """A tensor of a class that the file named: the tensor node that it is underneath, and the
    name."""

    tensor: int
    name: str
    attrs: int = NONE


class Storage(Struct):
    """Bytes that tensors share. One entry a storage of the file: two tensors alias if they share an
    entry."""

    segment: int
    offset: int
    nbytes: int
    location: str
    """The tag that the file saved: "cpu", "cuda:0", "mps", "meta" or any other string."""


Node = Union[
    None, bool, int, float, str, Bytes,
    Tuple, Size, List, Dict, Set, Deque, Text, BigInt, Complex, ByteArray, Named, Value, Opaque,
    StorageValue, Namespace, NumpyDtype, NumpyScalar, NdArray, ObjectArray,
    Tensor, Quantized, SparseCoo, SparseCompressed, NestedStrided, NestedJagged, Subclass,
]  # fmt: skip


class Graph(Struct):
    """An object graph: `root` is the index of the node that is the object."""

    root: int
    nodes: list[Node]
    storages: list[Storage]


class Attempt(Struct):
    """A reader that refused or failed: why, and the globals it stumbled over."""

    reader: str
    error: str
    message: str
    globals: list[str] = []


class Call(Struct):
    """What the file asked to be called, and was not: "os.system" and its arguments as short
    printable text."""

    name: str
    args: str


class Reading(Struct):
    """How the file was read: for the report."""

    reader: str
    container: str
    attempts: list[Attempt] = []
    globals: list[str] = []
    calls: list[Call] = []
    warnings: list[str] = []


class Loaded(Struct, tag="loaded"):
    reading: Reading
    graph: Graph


class Failed(Struct, tag="failed"):
    """`kind`: "damaged", "unsupported" or "refused" (the policy's fallback ends the ladder), or
    "limit:<name>"."""

    kind: str
    message: str
    reading: Reading


class Passed(Struct, tag="passed"):
    """A worker without torch leaves the file to one that has it."""


Reply = Union[Loaded, Failed, Passed]


class Request(Struct):
    """What the parent asks of a worker. It is trusted: the parent made it.

    `fallback`: "none", "inert" or "full"; `tensors` False: no tensor bytes cross (inspect);
    `lead`: the bytes that come before the file's first in the source segment; `safe_globals`: the
    names of classes that the caller registered or allowed."""

    fallback: str
    tensors: bool = True
    max_nodes: int = MAX_NODES
    max_output: int = 0
    lead: int = 0
    safe_globals: list[str] = []


def parts(node: Node) -> Iterator[tuple[str, int]]:
    """The nodes that a composite value is made of, each with its name: not the contents of a
    container."""
    if isinstance(node, SparseCoo):
        yield from (("indices", node.indices), ("values", node.values))
    elif isinstance(node, SparseCompressed):
        yield from (("compressed", node.compressed), ("plain", node.plain), ("values", node.values))
    elif isinstance(node, NestedStrided):
        yield from (("values", node.buffer), ("sizes", node.sizes), ("strides", node.strides))
        yield "offsets", node.offsets
    elif isinstance(node, NestedJagged):
        yield from (("values", node.values), ("offsets", node.offsets))
        optional = (("lengths", node.lengths), ("min_seqlen", node.min_seqlen))
        for name, index in (*optional, ("max_seqlen", node.max_seqlen)):
            if index != NONE:
                yield name, index
    elif isinstance(node, Quantized) and node.axis != NONE:
        yield from (("scales", node.scales), ("zero_points", node.zero_points))
    elif isinstance(node, Subclass):
        yield "tensor", node.tensor
    elif isinstance(node, Namespace):
        yield "attrs", node.attrs
    elif isinstance(node, ObjectArray):
        yield from ((str(position), index) for position, index in enumerate(node.items))
