"""Object graphs of every value that torch.load(weights_only=True) can return, from a seed and a
size.

A seed, and not a hypothesis strategy of its own for each value: thousands of graphs take seconds,
the size shrinks, and the seed is the whole reproduction.
"""

from __future__ import annotations

import random
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from isoload import manifest as m

_DTYPES = [getattr(torch, name) for name in m.DTYPES if not name.startswith(("q", "uint", "int"))]
_DTYPES += [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
_DTYPES += [torch.uint16, torch.uint32, torch.uint64]
_NEW = torch.storage._new_dtypes()
_OLD_DTYPES = [dtype for dtype in _DTYPES if dtype not in _NEW]
"""Those that a legacy file can hold."""

_TEXTS = (
    "",
    "a",
    "weight",
    "layer.0.bias",
    "é",
    "日本",
    "\ud800",
    "\U0001f600",
    "x" * 300,
    "nul\0",
)
_FLOATS = (0.0, -0.0, 1.5, float("inf"), float("-inf"), 5e-324, 1.7976931348623157e308)
_NAMED = (
    *(torch.float32, torch.int3, torch.uint7, torch.qint8, torch.bits8, torch.float8_e5m2),
    *(torch.strided, torch.sparse_csr, torch.device("cpu"), torch.device("cuda:3")),
    *(torch.device("meta"), torch.per_tensor_affine, torch.per_channel_affine),
    *(OrderedDict, Counter, torch.Size, torch.Tensor, torch.FloatTensor, torch.nn.Parameter),
    torch._utils._rebuild_tensor_v2,
)


class Maker:
    """Makes one graph. `old`: only what the legacy format can hold."""

    def __init__(self, seed: int, size: int, *, old: bool = False) -> None:
        self.random = random.Random(seed)
        self.left = size
        self.old = old
        self.pool: list[Any] = []
        self.containers: list[Any] = []
        self.bases: list[Any] = []

    def graph(self) -> Any:
        root = self.container(0)
        for _ in range(self.random.randrange(3) if self.containers else 0):
            self.tie(root)
        return root

    def tie(self, root: Any) -> None:
        """A cycle, or an object that two containers share."""
        container = self.random.choice(self.containers)
        value = self.random.choice([root, *self.pool])
        if isinstance(container, list):
            container.append(value)
        elif isinstance(container, dict) and not isinstance(container, Counter):
            container[f"tie {len(container)}"] = value

    def value(self, depth: int) -> Any:
        self.left -= 1
        if self.pool and self.random.random() < 0.15:
            return self.random.choice(self.pool)
        if self.left > 0 and depth < 6 and self.random.random() < 0.3:
            made = self.container(depth + 1)
        else:
            made = self.random.choice(_LEAVES)(self)
        self.pool.append(made)
        return made

    def container(self, depth: int) -> Any:
        count = self.random.choice((0, 1, 2, 3, 5, 8))
        kind = self.random.choice((list, tuple, dict, OrderedDict, OrderedDict, Counter, set))
        made: Any
        if kind is list:
            made = []
            self.containers.append(made)
            made += [self.value(depth) for _ in range(count)]
        elif kind is tuple:
            made = tuple(self.value(depth) for _ in range(count))
        elif kind is set:
            made = {self.key() for _ in range(count)}
        elif kind is Counter:
            made = Counter({self.key(): self.random.randrange(-3, 9) for _ in range(count)})
        else:
            made = kind()
            self.containers.append(made)
            for _ in range(count):
                made[self.key()] = self.value(depth)
            if kind is OrderedDict and self.random.random() < 0.3:
                made._metadata = OrderedDict(version=self.value(depth))
        return made

    def key(self) -> Any:
        made = self.random.choice((_text, _text, _text, _integer, _float, _pair, _named))(self)
        self.pool.append(made)
        return made

    def base(self) -> Any:
        """A tensor whose storage others may view."""
        if self.bases and self.random.random() < 0.5:
            return self.random.choice(self.bases)
        dtype = self.random.choice(_OLD_DTYPES if self.old else _DTYPES)
        count = self.random.choice((0, 1, 2, 7, 24, 60))
        data = bytearray(self.random.randbytes(count * dtype.itemsize))
        if dtype is torch.bool:
            data = bytearray(byte % 2 for byte in data)
        made = torch.empty(count, dtype=dtype)
        if count:
            storage = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
            made.untyped_storage().copy_(storage)
        self.bases.append(made)
        return made


def _none(maker: Maker) -> Any:
    return maker.random.choice((None, True, False))


def _integer(maker: Maker) -> Any:
    bits = maker.random.choice((3, 8, 16, 31, 32, 63, 64, 65, 500, 2030))
    return maker.random.getrandbits(bits) * maker.random.choice((1, -1))


def _float(maker: Maker) -> Any:
    return maker.random.choice(_FLOATS)


def _any_float(maker: Maker) -> Any:
    return struct.unpack("<d", maker.random.randbytes(8))[0]


def _complex(maker: Maker) -> Any:
    return complex(_float(maker), _any_float(maker))


def _text(maker: Maker) -> Any:
    text = maker.random.choice(_TEXTS)
    return text if maker.random.random() < 0.5 else f"{text}{maker.random.randrange(50)}"


def _bytes(maker: Maker) -> Any:
    return bytearray(maker.random.randbytes(maker.random.randrange(20)))


def _named(maker: Maker) -> Any:
    return maker.random.choice(_NAMED)


def _pair(maker: Maker) -> Any:
    return (_text(maker), _integer(maker))


def _size(maker: Maker) -> Any:
    return torch.Size([maker.random.randrange(9) for _ in range(maker.random.randrange(4))])


def _tensor(maker: Maker) -> Any:
    """A view of a storage, of any shape and stride that fits."""
    base = maker.base()
    choice = maker.random.randrange(6)
    count = base.numel()
    if choice == 0 or count < 4:
        made = base
    elif choice == 1:
        start = maker.random.randrange(count)
        made = base[start : maker.random.randrange(start, count)]
    elif choice == 2:
        made = base[: count // 2 * 2].view(2, -1).t()
    elif choice == 3:
        made = base[::2]
    elif choice == 4:
        made = base[:1].expand(3, 4)
    else:
        made = base.as_strided((2, 2), (1, 1), maker.random.randrange(count - 2))
    return _dressed(maker, made)


def _dressed(maker: Maker, made: Any) -> Any:
    chance = maker.random.random()
    if made.dtype.is_complex and made.dtype is not torch.complex32 and chance < 0.4:
        made = made.conj()
        if chance < 0.15:
            made = made.imag
    differentiable = made.dtype.is_floating_point or made.dtype.is_complex
    if chance > 0.85:
        made = torch.nn.Parameter(made.detach(), differentiable and maker.random.random() < 0.7)
    elif chance > 0.75:
        made = made.detach()
        made.requires_grad_(differentiable)
    elif chance > 0.7 and differentiable:
        made = torch.nn.Buffer(made.detach())
    if chance > 0.9:
        made.tag = {"name": _text(maker), "of": maker.pool[-1:] or None}
    return made


def _meta(maker: Maker) -> Any:
    dtype = maker.random.choice(_OLD_DTYPES)
    return torch.empty(maker.random.randrange(4), 3, dtype=dtype, device="meta")


def _quantized(maker: Maker) -> Any:
    values = torch.rand(3, 4)
    dtype = maker.random.choice((torch.qint8, torch.quint8, torch.qint32))
    kind = maker.random.randrange(3)
    if kind == 0:
        return torch.quantize_per_tensor(values, 0.25, maker.random.randrange(9), dtype)
    axis = maker.random.randrange(2)
    scales = torch.rand(values.shape[axis]) + 0.1
    if kind == 1:
        zero_points = torch.arange(values.shape[axis])
        return torch.quantize_per_channel(values, scales, zero_points, axis, dtype)
    zero_points = torch.rand(values.shape[axis])
    return torch.quantize_per_channel(values, scales, zero_points, axis, torch.quint8)


def _sparse(maker: Maker) -> Any:
    dense = torch.eye(4) * maker.random.randrange(1, 9)
    dense[0, maker.random.randrange(4)] = 2
    kind = maker.random.randrange(6)
    if kind == 0:
        return dense.to_sparse()
    if kind == 1:
        return torch.sparse_coo_tensor([[1, 1, 0]], maker.random.choices((1.0, 2.0), k=3), (3,))
    if kind in (2, 3):
        return (dense.to_sparse_csr, dense.to_sparse_csc)[kind - 2]()
    return (dense.to_sparse_bsr, dense.to_sparse_bsc)[kind - 4]((2, 2))


def _nested(maker: Maker) -> Any:
    if maker.old:
        return None  # torch reads the places of its parts before they are there
    parts = [torch.rand(maker.random.randrange(1, 4), 2) for _ in range(3)]
    return torch.nested.nested_tensor(parts)


def _storage(maker: Maker) -> Any:
    base = maker.base()
    if base.dtype in _NEW:
        return base.untyped_storage()
    return base._typed_storage()


_LEAVES: tuple[Callable[[Maker], Any], ...] = (
    *(_none, _integer, _any_float, _complex, _text, _bytes, _named, _size, _storage),
    *(_tensor,) * 12,
    *(_meta, _quantized, _sparse, _nested),
)
