"""A scanned pickle, executed by the C unpickler: no tensor, storage or class of the file is made.

`direct_scan` says why the C unpickler may run the program. The globals that it finds are the inert
stand-ins below, and plain containers of Python where torch's own table holds those too. Nothing
that can be on its stack has `append`, `extend` or `__setitem__` but what torch's unpickler takes
for that, and nothing but the table's own functions and classes can be called.

No offset into the file is computed here (storages are given by whoever knows the container), and no
node of the graph is made but for values.
"""

from __future__ import annotations

import _pickle
import io
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from .direct_scan import MODULE
from .stand_ins import (
    BUILD,
    Bytes,
    Dtype,
    FileList,
    Kind,
    Mention,
    Ordered,
    Unusual,
    View,
    check_location,
)
from .vocabulary import REBUILD, UNTYPED, Vocabulary

Column = Sequence[Any]
Storages = Callable[[Column, Column, Column, Column], list[Bytes]]
"""(storage classes, keys, locations, numbers of elements), an item for each time that the program
names a storage → the storages. Raises `Unusual`. The numbers may be anything."""


class Made(NamedTuple):
    """What the program made, before any of it is a node. `storages`: by the number of a mention."""

    root: Any
    views: list[View]
    storages: list[Bytes]


def execute(
    code: bytes, storages: Storages, vocabulary: Vocabulary, *, legacy: bool = False
) -> Made:
    """Run a scanned program. Raises `Unusual`, and whatever the C unpickler has to say of it.

    A storage's persistent id is ("storage", class, key, location, elements); in legacy files a
    sixth item says that it is a view of another, which is not handled here, and a class without a
    dtype is refused, as by torch. They are looked at when the program has ended: all at once."""
    views: list[View] = []
    ids: list[Any] = []
    add_view, add_id = views.append, ids.append
    no_hooks = Ordered()

    def tensor(storage: Any, offset: Any, size: Any, stride: Any) -> View:
        return tensor_v2(storage, offset, size, stride, False, no_hooks)

    def tensor_v2(
        storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
    ) -> View:
        view = View((storage, offset, size, stride, requires_grad, hooks, None))
        add_view(view)
        return view

    def tensor_v3(*args: Any) -> View:
        if type(args[6]) is not Dtype or len(args) != 7:
            raise Unusual
        view = View(args)
        add_view(view)
        return view

    def parameter(*args: Any) -> View:
        data, requires_grad, hooks = args
        if type(data) is not View or data.parameter:
            raise Unusual
        view = View((*data.args[:4], requires_grad, hooks, data.args[6]), parameter=True)
        add_view(view)
        return view

    def mention(pid: Any) -> Mention:
        number = len(ids)
        add_id(pid)
        return Mention(number)

    makers = zip(REBUILD, (tensor, tensor_v2, tensor_v3, parameter), strict=True)
    table = vocabulary.table | dict(makers)
    full_name = vocabulary.full_name

    class Unpickler(_pickle.Unpickler):
        persistent_load = staticmethod(mention)

        def find_class(self, module: str, name: str) -> Any:
            if module == MODULE:
                return {"list": FileList, "build": BUILD}[name]
            return table[full_name(module, name)]

    root = Unpickler(io.BytesIO(code), encoding="utf-8").load()
    return Made(root, views, _find(ids, storages, legacy) if ids else [])


def _find(ids: list[Any], storages: Storages, legacy: bool) -> list[Bytes]:
    """The storage of each persistent id, in the order in which the program named them."""
    if set(map(type, ids)) != {tuple} or set(map(len, ids)) != {6 if legacy else 5}:
        raise Unusual
    words, kinds, keys, locations, counts, *rest = zip(*ids, strict=True)
    if set(map(type, chain(words, keys, locations))) != {str} or set(words) != {"storage"}:
        raise Unusual
    if set(map(type, kinds)) != {Kind}:
        raise Unusual
    if legacy and (UNTYPED in set(kinds) or any(view is not None for view in rest[0])):
        raise Unusual
    for location in set(locations):
        check_location(location)
    return storages(kinds, keys, locations, counts)
