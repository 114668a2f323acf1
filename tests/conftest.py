"""What every test may use, and the switch that turns a skip for want of isolation into a
failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import isoload

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if MUST_ISOLATE and report.skipped and item.get_closest_marker("isolation"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: may not be skipped where ISOLOAD_TESTS_MUST_ISOLATE=1"
    return report
