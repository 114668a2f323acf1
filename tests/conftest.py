"""What every test may use, and the switch that turns a skip for want of isolation into a
failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import isoload
from sandbox import Layer, probe

MUST_ISOLATE = os.environ.get("ISOLOAD_TESTS_MUST_ISOLATE") == "1"

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"
"""Real and hostile checkpoints, beside the checkout where they are to be had."""


@pytest.fixture(scope="session")
def loader() -> Iterator[isoload.Loader]:
    """One Loader for all tests that need nothing special of it."""
    with isoload.Loader() as loader:
        yield loader


@pytest.fixture(scope="session")
def corpus() -> Path:
    if not CORPUS.is_dir():
        pytest.skip(f"no corpus at {CORPUS}")
    return CORPUS


@pytest.fixture(scope="session")
def lacking() -> tuple[Layer, ...]:
    """The layers that the default policy requires and this host cannot give."""
    return probe().missing()


@pytest.fixture(autouse=True)
def _isolation(request: pytest.FixtureRequest) -> None:
    """A test marked `isolation` is skipped where a worker cannot be confined, or fails there if it
    was said that it can."""
    if request.node.get_closest_marker("isolation") is None:
        return
    missing = request.getfixturevalue("lacking")
    if missing:
        why = "; ".join(f"{layer.name}: {layer.cause}" for layer in missing)
        if MUST_ISOLATE:
            pytest.fail(f"ISOLOAD_TESTS_MUST_ISOLATE=1, and this host cannot isolate: {why}")
        pytest.skip(why)
