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

`decode_reply` is strict about the form. The arithmetic is in `isoload.check`, which must pass
before `isoload.rebuild` may use a graph.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
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


class _Node(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
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
    """A value from a fixed table (`isoload.values`). `kind`: "dtype", "layout", "qscheme",
    "memory_format", "device", "storage_type", "constant" or "global"."""

    kind: str
    name: str


class Value(_Node, tag=12):
    """A standard-library value (datetime, Decimal, Path, range, slice, …): a name from the table in
    `isoload.values`, and the arguments that its constructor there takes."""

    kind: str
    args: list[int]


class Opaque(_Node, tag=13):
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


class StorageValue(_Node, tag=14):
    """A storage as a value: a TypedStorage of `dtype` (an index into DTYPES), or an UntypedStorage
    (NONE)."""

    storage: int
    dtype: int = NONE


class Namespace(_Node, tag=15):
    """A bag of attributes: `kind` is "types.SimpleNamespace" or "argparse.Namespace"; `attrs` is a
    Dict."""

    kind: str
    attrs: int


class NumpyDtype(_Node, tag=16):
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


class NumpyScalar(_Node, tag=17):
    """A numpy scalar: a NumpyDtype node and the item's bytes."""

    dtype: int
    data: bytes


class NdArray(_Node, tag=18):
    """A numpy array over a storage: C order, or Fortran order."""

    storage: int
    dtype: int
    shape: list[int]
    fortran: bool = False


class ObjectArray(_Node, tag=19):
    """A numpy array of objects: the items in C order, whatever the memory's order."""

    shape: list[int]
    items: list[int]
    fortran: bool = False


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


class Quantized(_Node, tag=21):
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


class SparseCoo(_Node, tag=22):
    """A sparse COO tensor of the tensor nodes `indices` and `values`."""

    indices: int
    values: int
    size: list[int]
    coalesced: bool
    flags: int = 0
    attrs: int = NONE


class SparseCompressed(_Node, tag=23):
    """A compressed sparse tensor: `layout` is "sparse_csr", "sparse_csc", "sparse_bsr" or
    "sparse_bsc"."""

    layout: str
    compressed: int
    plain: int
    values: int
    size: list[int]
    flags: int = 0
    attrs: int = NONE


class NestedStrided(_Node, tag=24):
    """A nested tensor of strided layout: a flat `buffer`, and where each component lies in it
    (tensor nodes)."""

    buffer: int
    sizes: int
    strides: int
    offsets: int
    flags: int = 0
    attrs: int = NONE


class NestedJagged(_Node, tag=25):
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


class Subclass(_Node, tag=26):
    """A tensor of a class that the file named: the tensor node that it is underneath, and the
    name."""

    tensor: int
    name: str
    attrs: int = NONE


class Storage(_Node):
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
    """What the file asked to be called, and was not: "os.system" and its arguments as short
    printable text."""

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
    """`kind`: "damaged", "unsupported" or "refused" (the policy's fallback ends the ladder), or
    "limit:<name>"."""

    kind: str
    message: str
    reading: Reading


Reply = Union[Loaded, Failed]


class Request(_Node):
    """What the parent asks of a worker. It is trusted: the parent made it.

    `fallback`: "none", "inert" or "full"; `tensors` False: no tensor bytes cross (inspect);
    `held` False: no tensor may lie in the source, which will not be kept; `safe_globals`: the names
    of classes that the caller registered or allowed."""

    fallback: str
    tensors: bool = True
    max_nodes: int = MAX_NODES
    max_output: int = 0
    held: bool = True
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


class _GraphFrame(_Node):
    root: int
    nodes: msgspec.Raw
    storages: msgspec.Raw


class _LoadedFrame(_Node, tag="loaded"):
    reading: Reading
    graph: _GraphFrame


_encoder = msgspec.msgpack.Encoder()
_frame_decoder = msgspec.msgpack.Decoder(Union[_LoadedFrame, Failed])
_nodes_decoder = msgspec.msgpack.Decoder(list[Node])
_storages_decoder = msgspec.msgpack.Decoder(list[Storage])


def encode_reply(reply: Reply) -> bytes:
    return _encoder.encode(reply)


def decode_reply(data: bytes, *, max_nodes: int = MAX_NODES) -> Reply:
    """Decode what a worker sent; raise ManifestError for anything that is not exactly a reply.

    The tables' lengths are read before the tables are, so that a short message cannot ask for more
    than `max_nodes` objects.
    """
    try:
        frame = _frame_decoder.decode(data)
        if isinstance(frame, Failed):
            return frame
        for table in (frame.graph.nodes, frame.graph.storages):
            if _length(bytes(memoryview(table)[:5])) > max_nodes:
                raise ManifestError(f"the reply describes more than {max_nodes} objects")
        with _uncollected():
            nodes = _nodes_decoder.decode(frame.graph.nodes)
            storages = _storages_decoder.decode(frame.graph.storages)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ManifestError(f"the reply breaks the schema: {error}") from None
    return Loaded(frame.reading, Graph(frame.graph.root, nodes, storages))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk the growing table again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _length(head: bytes) -> int:
    """The length in the head of a MessagePack array (its specification, "array format family")."""
    if len(head) > 0 and head[0] & 0xF0 == 0x90:
        return head[0] & 0x0F
    if len(head) > 2 and head[0] == 0xDC:
        return int.from_bytes(head[1:3], "big")
    if len(head) > 4 and head[0] == 0xDD:
        return int.from_bytes(head[1:5], "big")
    raise ManifestError("the reply breaks the schema: a table is not an array")
