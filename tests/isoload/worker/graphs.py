"""Manifest nodes → objects, and a comparison of objects that looks at identity and aliasing.

A second, plain way to build a graph: these tests depend on nothing of the parent's half.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from typing import Any

import torch

from isoload import manifest

_KINDS = {"": dict, "OrderedDict": OrderedDict, "Counter": Counter}


def build(graph: manifest.Graph, *segments: memoryview) -> Any:
    """The object of a graph over the source and its arena, copied."""
    storages = [_storage(storage, segments[storage.segment]) for storage in graph.storages]
    made: list[Any] = []
    for node in graph.nodes:
        made.append(_shell(node, made, storages))
    for node, shell in zip(graph.nodes, made, strict=True):
        if isinstance(node, manifest.List):
            shell.extend(made[item] for item in node.items)
        elif isinstance(node, manifest.Set):
            shell.update(made[item] for item in node.items)
        elif isinstance(node, manifest.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                shell[made[key]] = made[value]
            if node.attrs >= 0:
                vars(shell).update(made[node.attrs])
    for node, shell in zip(graph.nodes, made, strict=True):
        if isinstance(node, manifest.Dict) and node.attrs >= 0:
            vars(shell).update(made[node.attrs])
    return made[graph.root]


def _storage(storage: manifest.Storage, data: memoryview) -> torch.UntypedStorage:
    piece = bytearray(data[storage.offset : storage.offset + storage.nbytes])
    assert len(piece) == storage.nbytes
    if not piece:
        return torch.UntypedStorage(0)
    return torch.frombuffer(piece, dtype=torch.uint8).untyped_storage()


def _shell(node: Any, made: list[Any], storages: list[torch.UntypedStorage]) -> Any:
    match node:
        case manifest.Tensor():
            dtype = getattr(torch, manifest.DTYPES[node.dtype])
            tensor = torch.empty(0, dtype=dtype).set_(
                storages[node.storage], node.offset, node.size, node.stride
            )
            grad = bool(node.flags & manifest.REQUIRES_GRAD)
            if node.flags & manifest.PARAMETER:
                return torch.nn.Parameter(tensor, grad)
            return tensor.requires_grad_(grad) if grad else tensor
        case manifest.Tuple():
            assert all(item < len(made) for item in node.items)
            return tuple([made[item] for item in node.items])
        case manifest.Size():
            return torch.Size(node.dims)
        case manifest.List():
            return []
        case manifest.Set():
            return set()
        case manifest.Dict():
            return _KINDS[node.kind]()
        case manifest.Text():
            return node.utf8.decode("utf-8", "surrogatepass")
        case manifest.BigInt():
            return int.from_bytes(node.data, "little", signed=True)
        case manifest.Complex():
            return complex(node.real, node.imag)
        case manifest.Bytes():
            return node.data
        case manifest.ByteArray():
            return bytearray(node.data)
        case manifest.Named(kind="dtype"):
            return getattr(torch, node.name)
        case manifest.Named(kind="device"):
            return torch.device(node.name)
        case str():
            return (node + " ")[:-1]
        case _:
            return node


class Difference(AssertionError):
    """Two graphs are not the same; the message says where."""


_BY_VALUE = (int, bool, type(None), torch.dtype, torch.device, torch.Size)


def compare(left: Any, right: Any) -> None:
    """Raise `Difference` unless the two are the same graph: types, values, identity, aliasing."""
    forth: dict[int, int] = {}
    back: dict[int, int] = {}
    storages: dict[int, int] = {}
    kept: list[Any] = []
    waiting = [(left, right, "")]
    while waiting:
        a, b, path = waiting.pop()
        if type(a) is not type(b):
            raise Difference(f"{path}: {type(a)} is not {type(b)}")
        if isinstance(a, complex):
            _same(struct.pack("2d", a.real, a.imag), struct.pack("2d", b.real, b.imag), path)
            continue
        if isinstance(a, _BY_VALUE):
            _same(a, b, path)
            continue
        if type(a) in (str, bytes, tuple) and len(a) < (1 if type(a) is tuple else 2):
            _same(a, b, path)
            continue
        known = forth.get(id(a))
        if known is not None or id(b) in back:
            _same(known, id(b), f"{path}: identity")
            continue
        forth[id(a)], back[id(b)] = id(b), id(a)
        kept += (a, b)
        waiting += _inside(a, b, path, storages)


def _same(a: Any, b: Any, path: str) -> None:
    if a != b:
        raise Difference(f"{path}: {a!r} is not {b!r}")


def _inside(a: Any, b: Any, path: str, storages: dict[int, int]) -> list[tuple[Any, Any, str]]:
    if isinstance(a, torch.Tensor):
        _tensors(a, b, path, storages)
        return [(vars(a), vars(b), f"{path}.__dict__")] if vars(a) or vars(b) else []
    if isinstance(a, float):
        _same(struct.pack("d", a), struct.pack("d", b), path)
        return []
    if isinstance(a, (str, bytes, bytearray, set)):
        _same(a, b, path)
        return []
    if isinstance(a, dict):
        _same(len(a), len(b), path)
        pairs = [(x, y, f"{path} key") for x, y in zip(dict.keys(a), dict.keys(b), strict=True)]
        pairs += [
            (x, y, f"{path}[{key!r}]")
            for key, x, y in zip(dict.keys(a), dict.values(a), dict.values(b), strict=True)
        ]
        if isinstance(a, (OrderedDict, Counter)):
            pairs.append((dict(a.__dict__), dict(b.__dict__), f"{path}.__dict__"))
        return pairs
    if isinstance(a, (list, tuple)):
        _same(len(a), len(b), path)
        return [(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))]
    raise Difference(f"{path}: a {type(a)} is not compared")


def _tensors(a: torch.Tensor, b: torch.Tensor, path: str, storages: dict[int, int]) -> None:
    for name in ("dtype", "shape", "requires_grad", "layout", "is_leaf"):
        _same(getattr(a, name), getattr(b, name), f"{path}.{name}")
    _same(a.stride(), b.stride(), f"{path}.stride")
    _same(a.storage_offset(), b.storage_offset(), f"{path}.storage_offset")
    _same(bool(a._backward_hooks), bool(b._backward_hooks), f"{path}._backward_hooks")
    one, other = a.untyped_storage(), b.untyped_storage()
    _same(one.nbytes(), other.nbytes(), f"{path}: bytes of its storage")
    known = storages.get(one._cdata)
    if known is not None or other._cdata in storages:
        _same(known, other._cdata, f"{path}: aliasing")
        return
    storages[one._cdata], storages[other._cdata] = other._cdata, one._cdata
    if one.nbytes():
        left, right = (torch.empty(0, dtype=torch.uint8).set_(s) for s in (one, other))
        if not torch.equal(left, right):
            raise Difference(f"{path}: the bytes differ")
