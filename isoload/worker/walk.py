"""The object graph that a reader made, as manifest nodes: all but its tensors.

The graph may be anything that a hostile file can make of this process, and nobody trusts what is
said here. The walk is iterative and remembers every object by its id, so that cycles end, shared
objects stay shared, and a graph that explodes as a tree is as small as it is. It reads objects by
their exact type or by `object.__getattribute__`, never by what their class overrides.
"""

from __future__ import annotations

import enum
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from isoload import manifest as m
from isoload.bounds import MAX_BIG_INT, hidden_by
from isoload.values import (
    FACTORIES,
    NAMESPACES,
    VALUE_NAMES,
    take_value,
)
from sandbox import printable

from .anatomy import cut, fixed_content, full_name, is_reference, reference, state_of
from .describe_numpy import ArrayWriter
from .names import Names
from .reading import Reading, TooMuch
from .recorded import Recorded
from .storages import StorageTable


class Frame:
    """A composite object whose children are being described: `finish` makes its node of their
    indices."""

    __slots__ = ("children", "done", "finish")

    def __init__(self, children: Iterable[Any], finish: Callable[[list[int]], int | Frame]) -> None:
        self.children = iter(children)
        self.finish = finish
        self.done: list[int] = []


class Walk:
    """A subclass adds what tensors are: to `leaves` and `tensor_kinds`, and by `open_tensor`."""

    def __init__(
        self, reading: Reading, max_nodes: int, names: Names, read: Callable[[Any], memoryview]
    ) -> None:
        """`read`: the bytes of a storage."""
        self.reading = reading
        self.names = names
        self.max_nodes = max_nodes
        self.edges = 0
        self.nodes: list[Any] = []
        self.memo: dict[int, int] = {}
        self.kept: list[Any] = []
        self.pending: list[tuple[int, Any]] = []
        self.storages = StorageTable(reading, read)
        self.arrays = ArrayWriter(self.nodes, self.storages)
        self.tensor_kinds: frozenset[type] = frozenset()
        self.leaves: dict[type, Callable[[Any], Any]] = {
            type(None): _same,
            bool: _same,
            float: _same,
            int: _int,
            str: _str,
            bytes: m.Bytes,
            bytearray: lambda value: m.ByteArray(bytes(value)),
            complex: lambda value: m.Complex(value.real, value.imag),
            **dict.fromkeys(names.types, self.named),
        }
        self.opened: dict[type, Callable[[Any], Frame | int]] = {
            list: self.open_list,
            tuple: self.open_tuple,
            dict: self.open_dict,
            OrderedDict: self.open_dict,
            Counter: self.open_dict,
            defaultdict: self.open_dict,
            set: self.open_set,
            frozenset: self.open_frozenset,
            deque: self.open_deque,
            Recorded: self.open_recorded,
            **dict.fromkeys(NAMESPACES.values(), self.open_namespace),
            **dict.fromkeys(VALUE_NAMES, self.open_value),
        }

    def describe(self, root: Any) -> int:
        index = self.walk(root)
        while self.pending:
            owner, attrs = self.pending.pop()
            self.nodes[owner].attrs = self.walk(attrs)
        return index

    def walk(self, root: Any) -> int:
        """Describe one object and all that it reaches, children in order."""
        memo, nodes, leaves = self.memo, self.nodes, self.leaves
        kinds, max_nodes = self.tensor_kinds, self.max_nodes
        result: list[int] = []
        stack = [Frame((root,), lambda done: done[0])]
        while stack:
            frame = stack[-1]
            done = frame.done
            for child in frame.children:
                key = id(child)
                index = memo.get(key)
                if index is None:
                    kind = type(child)
                    leaf = leaves.get(kind)
                    if leaf is not None:
                        node = leaf(child)
                        index = len(nodes)
                        nodes.append(node)
                    elif kind in kinds:
                        index = self.tensor(child)
                    else:
                        opened = self.open(child, kind)
                        if isinstance(opened, Frame):
                            stack.append(opened)
                            break
                        index = opened
                    memo[key] = index
                    if index > max_nodes:
                        raise self.too_many()
                done.append(index)
            else:
                made = frame.finish(done)
                if isinstance(made, Frame):
                    stack[-1] = made
                    continue
                stack.pop()
                target = stack[-1].done if stack else result
                target.append(made)
        return result[0]

    def too_many(self) -> TooMuch:
        return TooMuch("nodes", f"the file holds more than {self.max_nodes} objects")

    def keep(self, value: Any) -> Any:
        """Hold what the walk itself made, so that its id stays its own."""
        self.kept.append(value)
        return value

    def count(self, edges: int) -> None:
        self.edges += edges
        if self.edges > 4 * self.max_nodes:
            raise self.too_many()

    def reserve(self, value: Any) -> int:
        """The index of an object that can refer to itself: known before its children are."""
        index = self.memo[id(value)] = self.add(None)
        return index

    def fill(self, value: Any, children: Iterable[Any], make: Callable[[list[int]], Any]) -> Frame:
        """A frame for an object that may change: `make` gives the node for the index it has
        already."""
        index = self.reserve(value)

        def finish(done: list[int]) -> int:
            self.nodes[index] = make(done)
            return index

        return Frame(children, finish)

    def build(self, value: Any, children: Iterable[Any], make: Callable[[list[int]], Any]) -> Frame:
        """A frame for an object that cannot change: its node comes after its children's."""

        def finish(done: list[int]) -> int:
            found = self.memo.get(id(value))
            if found is not None:  # reached again through one of its children
                return found
            index = self.memo[id(value)] = self.add(make(done))
            return index

        return Frame(children, finish)

    def add_attrs(self, index: int, attrs: Any, owner: type) -> None:
        """Attributes are described once all else is; those that would hide the class's own are
        dropped."""
        kept = {}
        for name, value in attrs.items():
            if type(name) is str and not hidden_by(owner, name):
                kept[name] = value
            else:
                shown = printable(name if type(name) is str else type(name).__name__, 100)
                self.reading.warn(f"the attribute {shown} of a {owner.__name__} was dropped")
        if kept:
            self.pending.append((index, self.keep(kept)))

    def open(self, value: Any, kind: type) -> Frame | int:
        opener = self.opened.get(kind)
        if opener is not None:
            return opener(value)
        found = self.open_tensor(value, kind)
        if found is not None:
            return found
        if kind is np.ndarray or issubclass(kind, np.generic | np.dtype):
            return self.open_numpy(value, kind)
        if is_reference(value, kind):
            return self.add(reference(value, self.names))
        return self.open_instance(value, kind)

    def named(self, value: Any) -> m.Named:
        named = self.names.name_of(value)
        assert named is not None
        return m.Named(*named)

    def add(self, node: Any) -> int:
        index = len(self.nodes)
        if index > self.max_nodes:
            raise self.too_many()
        self.nodes.append(node)
        return index

    def open_list(self, value: list[Any]) -> Frame:
        self.count(len(value))
        return self.fill(value, value, m.List)

    def open_tuple(self, value: tuple[Any, ...]) -> Frame:
        self.count(len(value))
        return self.build(value, value, m.Tuple)

    def open_set(self, value: set[Any]) -> Frame:
        self.count(len(value))
        return self.fill(value, value, m.Set)

    def open_frozenset(self, value: frozenset[Any]) -> Frame:
        self.count(len(value))
        return self.build(value, value, lambda done: m.Set(done, True))

    def open_deque(self, value: deque[Any]) -> Frame:
        self.count(len(value))
        return self.fill(value, value, lambda done: m.Deque(done, value.maxlen))

    def open_dict(self, value: dict[Any, Any]) -> Frame | int:
        """Keys and values in turn, as a pickle has them."""
        self.count(len(value))
        kind = type(value)
        factory = self.factory(value) if isinstance(value, defaultdict) else m.NONE
        name = "" if kind is dict else kind.__name__
        if not value:  # half of what a pickled module is made of: without a frame
            index = self.reserve(value)
            self.nodes[index] = m.Dict([], [], name, m.NONE, factory)
            if kind in (OrderedDict, Counter) and value.__dict__:
                self.add_attrs(index, value.__dict__, kind)
            return index

        def make(done: list[int]) -> m.Dict:
            return m.Dict(done[::2], done[1::2], name, m.NONE, factory)

        frame = self.fill(value, _pairs(value), make)
        if kind in (OrderedDict, Counter) and value.__dict__:
            self.add_attrs(self.memo[id(value)], value.__dict__, kind)
        return frame

    def factory(self, value: defaultdict[Any, Any]) -> int:
        factory = value.default_factory
        if factory is None:
            return m.NONE
        named = self.names.name_of(factory)
        if named is None or named[1] not in FACTORIES:
            shown = printable(full_name(factory), 100)
            self.reading.warn(f"a defaultdict has lost its factory, {shown}")
            return m.NONE
        return self.add(m.Named(*named))

    def open_namespace(self, value: Any) -> Frame:
        kind = next(name for name, cls in NAMESPACES.items() if cls is type(value))
        attrs = self.plain_attrs(value)
        return self.fill(value, (attrs,), lambda done: m.Namespace(kind, done[0]))

    def plain_attrs(self, value: Any) -> dict[str, Any]:
        own = object.__getattribute__(value, "__dict__")
        kept = {
            name: item
            for name, item in own.items()
            if type(name) is str and not hidden_by(object, name)
        }
        if len(kept) != len(own):
            self.reading.warn(f"attributes of a {type(value).__name__} were dropped")
        return dict(self.keep(kept))

    def open_value(self, value: Any) -> Frame | int:
        taken = take_value(value)
        if taken is None:
            return self.open_instance(value, type(value))
        name, args = taken
        self.keep(args)
        return self.build(value, args, lambda done: m.Value(name, done))

    def tensor(self, value: Any) -> int:
        """The node of a value of the `tensor_kinds`."""
        raise NotImplementedError  # a Walk without `tensor_kinds` is never asked

    def open_tensor(self, value: Any, kind: type) -> Frame | int | None:
        """A tensor of any other kind; None for what is none."""
        return None

    def open_numpy(self, value: Any, kind: type) -> Frame | int:
        if kind is np.ndarray and value.dtype == object:
            order = "F" if value.flags.fnc and value.ndim > 1 else "C"
            items = self.keep([*value.ravel("C")])
            self.count(len(items))
            shape = list(value.shape)
            return self.fill(value, items, lambda done: m.ObjectArray(shape, done, order == "F"))
        index = self.arrays.describe(value)
        return self.open_instance(value, kind) if index is None else index

    def open_recorded(self, value: Recorded) -> Frame | int:
        if value.reference:
            return self.add(m.Opaque(cut(value.name), reference=True))
        return self.open_object(
            value,
            value.name,
            args=tuple(value.args),
            kwargs=value.kwargs,
            state=value.state,
            items=value.items,
            pairs=value.pairs,
        )

    def open_instance(self, value: Any, kind: type) -> Frame:
        """An object of any other class: its state, and what it holds if it is a container."""
        name = full_name(kind)
        if issubclass(kind, enum.Enum):
            return self.open_object(value, name, args=(value._value_,))
        state = state_of(value, kind)
        if issubclass(kind, dict):
            return self.open_object(value, name, state=state, pairs=dict.items(value))
        for base in (list, set, deque):
            if issubclass(kind, base):
                return self.open_object(value, name, state=state, items=base.__iter__(value))
        return self.open_object(value, name, state=state, fixed=fixed_content(value, kind))

    def open_object(
        self,
        value: Any,
        name: str,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = types.MappingProxyType({}),
        fixed: Iterable[Any] = (),
        state: Any = None,
        items: Iterable[Any] = (),
        pairs: Iterable[tuple[Any, Any]] = (),
    ) -> Frame:
        """What was there before the object first: its arguments, or the `fixed` content of a tuple,
        str, …

        The rest comes after it, because it may refer to it."""
        positional, content = self.keep([*args]), self.keep([*fixed])
        keywords = {str(word): item for word, item in kwargs.items()}
        held = self.keep([*items])
        flat = self.keep([part for pair in pairs for part in pair])
        self.count(len(positional) + len(keywords) + len(content) + len(held) + len(flat))
        stated = [] if state is None else [self.keep(state)]

        def before(done: list[int]) -> int | Frame:
            found = self.memo.get(id(value))
            if found is not None:  # reached again through one of its arguments
                return found
            first, rest = done[: len(positional)], done[len(positional) :]
            named = dict(zip(keywords, rest, strict=False))
            inside = rest[len(keywords) :]

            def after(done: list[int]) -> m.Opaque:
                contents = done[len(stated) :]
                mapped = contents[len(held) :]
                return m.Opaque(
                    cut(name),
                    tuple(first),
                    named,
                    done[0] if stated else m.NONE,
                    (*inside, *contents[: len(held)]),
                    tuple(mapped[::2]),
                    tuple(mapped[1::2]),
                )

            return self.fill(value, (*stated, *held, *flat), after)

        return Frame((*positional, *keywords.values(), *content), before)


def _same(value: Any) -> Any:
    return value


def _int(value: int) -> Any:
    if -(2**63) <= value < 2**63:
        return value
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > MAX_BIG_INT:
        raise TooMuch("nodes", f"an int of {len(data)} bytes")
    return m.BigInt(data)


def _str(value: str) -> Any:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return m.Text(value.encode("utf-8", "surrogatepass"))
    return value


def _pairs(value: dict[Any, Any]) -> Iterator[Any]:
    for key, item in dict.items(value):
        yield key
        yield item
