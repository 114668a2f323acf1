"""Any graph that torch.load opens comes back as torch.load gives it: the differential test.

In one process, without the sandbox; `test_end_to_end.py` goes through it.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .compare import assert_same
from .graphs import Maker
from .inprocess import NotOpened, cross_bytes, cross_object

GRAPHS = int(os.environ.get("ISOLOAD_TESTS_GRAPHS", "2000"))
"""Graphs in one run of the suite, over all formats."""

LEGACY: dict[str, Any] = {"_use_new_zipfile_serialization": False}
FORMATS: dict[str, tuple[float, dict[str, Any]]] = {
    "zip": (0.4, {}),
    "legacy": (0.25, LEGACY),
    "zip-protocol-3": (0.1, {"pickle_protocol": 3}),
    "zip-protocol-4": (0.1, {"pickle_protocol": 4}),
    "zip-protocol-5": (0.1, {"pickle_protocol": 5}),
    "legacy-protocol-4": (0.05, {**LEGACY, "pickle_protocol": 4}),
}

SEEDS = st.integers(0, 2**48)
SIZES = st.integers(1, 60)


def saved(graph: Any, options: dict[str, Any]) -> bytes | None:
    """The file; None where torch cannot write it."""
    file = io.BytesIO()
    try:
        torch.save(graph, file, **options)
    except (RuntimeError, AttributeError):  # storages of two dtypes, a dtype without a storage type
        return None
    return file.getvalue()


def loaded(data: bytes) -> tuple[Any, bool]:
    """What torch.load makes of it, and whether weights_only did; ValueError if it cannot at all."""
    for weights_only in (True, False):
        try:
            return torch.load(io.BytesIO(data), weights_only=weights_only), weights_only
        except Exception as error:
            last = error
    raise ValueError(str(last))


def examples(name: str) -> Any:
    return settings(
        max_examples=max(1, int(GRAPHS * FORMATS[name][0])),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_graph_comes_back_as_torch_load_gives_it(name: str) -> None:
    options = FORMATS[name][1]
    opened = 0

    @examples(name)
    @given(seed=SEEDS, size=SIZES)
    def check(seed: int, size: int) -> None:
        nonlocal opened
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = saved(Maker(seed, size, old="legacy" in name).graph(), options)
            if data is None:
                return
            try:
                expected, by_weights_only = loaded(data)
            except ValueError:
                return
            actual, reader = cross_bytes(data)
        assert_same(actual, expected)
        assert reader == "weights_only" or not by_weights_only
        opened += 1

    check()
    assert opened > 0.5 * GRAPHS * FORMATS[name][0]


@settings(max_examples=max(1, GRAPHS // 10), deadline=None, database=None)
@given(seed=SEEDS, size=SIZES)
def test_any_graph_in_memory_crosses_whole(seed: int, size: int) -> None:
    graph = Maker(seed, size).graph()
    assert_same(cross_object(graph), graph)


@settings(max_examples=max(1, GRAPHS // 10), deadline=None, database=None)
@given(seed=SEEDS, cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_never_taken_for_a_whole_one(seed: int, cut: float) -> None:
    data = saved(Maker(seed, 20).graph(), {})
    if data is None:
        return
    with pytest.raises(NotOpened):
        cross_bytes(data[: int(len(data) * cut)])
