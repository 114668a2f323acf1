"""Real checkpoints as their publishers shipped them."""

from __future__ import annotations

import csv

import pytest
import torch

import isoload
from tests.conftest import CORPUS
from tests.fidelity.compare import assert_same

pytestmark = pytest.mark.isolation

INDEX = CORPUS / "real" / "INDEX.tsv"


def rows():
    if not INDEX.is_file():
        return []
    with INDEX.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_corpus_is_there(corpus):
    assert rows()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["relpath"])
@pytest.mark.parametrize("mmap", [False, True], ids=["snapshot", "mmap"])
def test_every_file_opens_with_all_its_tensors(loader, row, mmap):
    path = CORPUS / "real" / row["relpath"]
    loaded = loader.open(path, "cpu", mmap=mmap, policy=isoload.Policy.upload())
    assert len(loaded.report.tensors) >= int(row["n_tensors"])
    assert loaded.report.tensor_bytes >= int(row["tensor_bytes"])
    assert str(loaded.report)
    if row["weights_only"] == "ok":
        assert loaded.report.reader == "weights_only"
        assert_same(loaded.object, torch.load(path, map_location="cpu", weights_only=True))
    else:
        assert loaded.report.attempts[0].reader == "weights_only"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["relpath"])
def test_inspect_lists_the_same_tensors(loader, row):
    path = CORPUS / "real" / row["relpath"]
    loaded, report = loader.open(path, "cpu"), loader.inspect(path)
    assert report.tensors == loaded.report.tensors
