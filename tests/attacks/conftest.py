"""Sandboxes whose workers are the attacker's: by an entry, or in the place of isoload's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import isoload
from isoload import manifest as m
from isoload import wire
from isoload.ask import Sandboxes
from sandbox import Limits, Reply, Sandbox
from tests.attacks import outside

ENTRIES = "tests.attacks.entries"
MODULES = ("processes", "kernel", "uring", "secrets", "resources", "wire", "shared", "words")
REPLIER = f"{ENTRIES}.replier:main"
WALL = 30.0

Attack = Callable[..., Any]


@pytest.fixture(scope="session")
def box() -> Iterator[Sandbox]:
    """A sandbox whose workers run attacks; without spares, so nothing lives between calls."""
    with Sandbox(preload=[f"{ENTRIES}.{module}" for module in MODULES]) as box:
        yield box


@pytest.fixture
def run(box: Sandbox) -> Callable[..., Reply]:
    """Run one entry, named "module:function", in a worker."""

    def run(entry: str, request: bytes = b"", fds: Any = (), **limits: Any) -> Reply:
        return box.run(f"{ENTRIES}.{entry}", request, fds, Limits(**{"wall": WALL, **limits}))

    return run


@pytest.fixture
def attack(run: Callable[..., Reply]) -> Attack:
    """Run one attack with a request in JSON, and return what the attacker says it achieved."""

    def attack(entry: str, request: Any = None, fds: Any = (), **limits: Any) -> Any:
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        reply = run(entry, data, fds, **limits)
        assert not reply.fds
        return json.loads(reply.data)

    return attack


class Replaced(Sandbox):
    """isoload's sandbox with the worker's program replaced by the attacker's."""

    def run(  # type: ignore[override]  # the options are the sandbox's own affair
        self, entry: str, request: bytes, fds: Any = (), limits: Any = None, **options: Any
    ) -> Reply:
        del entry
        return super().run(REPLIER, request, fds, limits, **options)


def taken_over_loader(spares: int = 0) -> isoload.Loader:
    """A Loader whose workers, light or with torch, are the attacker's from their first byte: they
    do what the "file" says."""
    loader = isoload.Loader.__new__(isoload.Loader)
    loader._policy = isoload.Policy()
    preload = (f"{ENTRIES}.replier",)
    light = Replaced(preload=preload, spares=spares)
    torch = Replaced(preload=preload, spares=spares, beside=light, reopens=False)
    loader._boxes = Sandboxes(light, torch)
    loader._warm_up()
    return loader


@pytest.fixture(scope="session")
def taken_over() -> Iterator[isoload.Loader]:
    """See `taken_over_loader`."""
    with taken_over_loader() as loader:
        yield loader


def replying(reply: m.Reply | bytes, *segments: str | bytes) -> bytes:
    """A "file" for `taken_over`: its worker sends this reply with these segments.

    A segment is the bytes of a well-made one, the name of a bad one (`entries.shared.SEGMENTS`), or
    "source"."""
    data = reply if isinstance(reply, bytes) else wire.encode_reply(reply)
    return msgspec.msgpack.encode({"reply": data, "segments": [*segments]})


def calling(entry: str, request: bytes = b"") -> bytes:
    """A "file" for `taken_over`: its worker runs another entry."""
    return msgspec.msgpack.encode({"call": entry, "request": request})


def loaded(*nodes: Any, root: int | None = None, storages: Any = (), **reading: Any) -> m.Loaded:
    """A reply of these nodes; the last is the root unless another is named."""
    what = m.Reading(**{"reader": "weights_only", "container": "zip", **reading})
    graph = m.Graph(len(nodes) - 1 if root is None else root, [*nodes], [*storages])
    return m.Loaded(what, graph)


@pytest.fixture(scope="module")
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever the module's tests did, the parent is as it was before them.

    The module names in `SANDBOXES` the fixtures that it uses: what they start is not its doing."""
    for name in request.module.SANDBOXES:
        outside.warm(request.getfixturevalue(name))
    with outside.unharmed():
        yield
