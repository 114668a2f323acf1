"""Through the real sandbox: what comes back is what torch.load gives, for graphs and for the
corpus."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import isoload

from .compare import assert_same
from .graphs import Maker
from .test_graphs import FORMATS, loaded, saved
from .test_values import VALUES

GRAPHS = int(os.environ.get("ISOLOAD_TESTS_WHOLE_GRAPHS", "60"))

pytestmark = pytest.mark.isolation


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_generated_graphs_come_back_the_same(
    loader: isoload.Loader, tmp_path: Path, name: str, mmap: bool
) -> None:
    path = tmp_path / "model.pt"
    compared = 0
    for seed in range(max(2, GRAPHS // (2 * len(FORMATS)))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = saved(Maker(seed, 40, old="legacy" in name).graph(), FORMATS[name][1])
            if data is None:
                continue
            try:
                expected, _ = loaded(data)
            except ValueError:
                continue
            path.write_bytes(data)
            assert_same(loader.load(path, mmap=mmap), expected)
        compared += 1
    assert compared


@pytest.mark.parametrize("name", ["jagged", "per channel", "BSR", "conj", "a cycle", "nested"])
def test_the_rarer_values_come_back_the_same(loader: isoload.Loader, name: str) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save([VALUES[name]], file)
        expected = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        assert_same(loader.load(file.getvalue()), expected)


def test_real_checkpoints_come_back_the_same(loader: isoload.Loader, corpus: Path) -> None:
    files = sorted(path for path in (corpus / "real").glob("*/*") if path.is_file())
    compared = 0
    for path in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected: Any
            try:
                expected = torch.load(path, "cpu", weights_only=True)
            except Exception:
                continue
            assert_same(loader.load(path, "cpu"), expected)
        compared += 1
    assert compared
