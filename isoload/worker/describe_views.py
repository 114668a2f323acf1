"""The object graph of a file whose tensors were not made, as manifest nodes and an arena."""

from __future__ import annotations

from isoload import manifest as m

from .names import Names
from .reading import Reading
from .stand_ins import Size, Unusual
from .views import Span, View
from .walk import Walk


def describe_views(
    reading: Reading, request: m.Request, names: Names
) -> tuple[m.Graph, int | None]:
    """The nodes of `reading.root`, and the descriptor of the arena if it needs one: for arrays.
    As `describe.describe`."""
    walk = _ViewWalk(reading, request.max_nodes, names)
    root = walk.describe(reading.root)
    storages, arena = walk.storages.finish(request.tensors, request.max_output)
    return m.Graph(root, walk.nodes, storages), arena


class _ViewWalk(Walk):
    def __init__(self, reading: Reading, max_nodes: int, names: Names) -> None:
        super().__init__(reading, max_nodes, names, _elsewhere)
        self.leaves |= {
            Size: lambda value: m.Size(list(value)),
            Span: self.span,
            View: self.view,
        }

    def span(self, value: Span) -> m.StorageValue:
        """In the place of a TypedStorage."""
        index = self.storages.index(value, value.kind.itemsize)
        return m.StorageValue(index, value.kind.dtype)

    def view(self, value: View) -> m.Tensor:
        kind = value.kind
        storage = self.storages.index(value.span, kind.itemsize)
        size, stride = [*value.size], [*value.stride]
        return m.Tensor(storage, kind.dtype, value.offset, size, stride, value.flags)


def _elsewhere(span: Span) -> memoryview:
    """A span lies in the source."""
    raise Unusual
