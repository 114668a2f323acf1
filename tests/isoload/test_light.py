"""Most files need no torch but the caller's: which workers are asked, and what they have."""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import isoload
from isoload import preparation
from isoload.torch_facts import gather
from isoload.worker.vocabulary import Vocabulary


def save(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


class Model:
    def __init__(self):
        self.weight = torch.ones(3)


PLAIN = save({"weight": torch.ones(3)})
LEGACY = save({"weight": torch.ones(3)}, _use_new_zipfile_serialization=False)
MODULE = save({"epoch": 1, "state": {"weight": torch.ones(3)}, "model": Model()})
SPARSE = save({"weight": torch.eye(3).to_sparse()})


def _npy():
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


@pytest.mark.parametrize("module", ["isoload", "isoload.worker.light", "isoload.torch_facts"])
def test_torch_is_not_imported_where_only_the_caller_needs_it(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.isolation
def test_a_zygote_with_torch_starts_when_a_file_needs_it():
    with isoload.Loader(spares=1, _ahead=False) as loader:
        for data, reader in ((PLAIN, "weights_only"), (LEGACY, "weights_only"), (MODULE, "inert")):
            assert loader.open(data, "cpu").report.reader == reader
            assert loader._boxes.torch._zygote is None
        for data, reader in ((SPARSE, "weights_only"), (_npy(), "numpy")):
            assert loader.open(data, "cpu").report.reader == reader
        assert loader._boxes.torch._zygote is not None


@pytest.mark.isolation
@pytest.mark.parametrize("data", [PLAIN, MODULE, SPARSE], ids=["plain", "module", "sparse"])
def test_one_place_is_enough_for_a_load_of_any_kind(data):
    with isoload.Loader(spares=0, max_workers=1) as loader:
        threads = [threading.Thread(target=loader.load, args=(data, "cpu")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.isolation
@pytest.mark.parametrize("policy", [isoload.Policy.strict(), isoload.Policy.upload()])
def test_both_kinds_of_workers_go_as_far_as_the_policy(policy):
    with isoload.Loader(policy, spares=0) as loader:
        assert loader.open(PLAIN, "cpu").report.reader == "weights_only"
        assert loader.open(SPARSE, "cpu").report.reader == "weights_only"
        if policy.fallback == "none":
            with pytest.raises(isoload.RefusedError) as refused:
                loader.load(MODULE, "cpu")
            assert refused.value.report.attempts[0].globals == (f"{__name__}.Model",)
        else:
            assert loader.open(MODULE, "cpu").report.reader == "inert"


def test_a_preparation_is_made_whatever_the_caller_has_set():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            assert isinstance(preparation.prepare(), bytes)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_facts_are_those_of_torch():
    facts = gather()
    assert facts.dtypes["bfloat16"] == 2
    assert facts.storages["HalfStorage"] == "float16"
    assert facts.constants["torch.float"] == ("dtype", "float32")
    assert "torch._utils._rebuild_tensor_v2" in Vocabulary(facts).allowed
    assert "torch._utils._rebuild_qtensor" not in Vocabulary(facts).allowed
