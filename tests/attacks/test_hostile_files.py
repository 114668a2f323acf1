"""Files made to do harm when opened, from a public scanner's tests: none leaves a trace."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import socket
import tempfile
import time
import zipfile

import psutil
import pytest
import torch

import isoload
from tests.conftest import CORPUS

pytestmark = pytest.mark.isolation

INDEX = CORPUS / "hostile" / "INDEX.tsv"
WALL = 20.0
NO_PICKLE = (None, "weights_only", "numpy", "safetensors")
"""What opens a file, if anything does, under the policy that allows no fallback."""
OTHERS = ("tmp", "pytest", "as_unprivileged", "bash")
"""What other programs of this machine name their temporary files, at any time."""
POLICIES = {
    "strict": isoload.Policy.strict(),
    "upload": isoload.Policy.upload(),
    "third_party": isoload.Policy.third_party(),
}


def rows():
    if not INDEX.is_file():
        return []
    with INDEX.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def as_it_is(data):
    return data


def as_torch_zip(data):
    """The pickle as `data.pkl` of an archive that torch itself has written."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


def as_legacy(data):
    """The pickle after the three that open a file from before torch 1.6."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    old = buffer.getvalue()
    end = old.index(b"}q\x00.", old.index(b"little_endian"))
    return old[:end] + data + b"\x80\x02]q\x00."


def opened(loader, data, policy):
    """The reader that opened it, or None and the words of the refusal."""
    try:
        return loader.open(data, "cpu", policy=policy).report.reader, ""
    except isoload.IsoloadError as error:
        return None, str(error)


def outside():
    """What a payload could change outside its worker."""
    return {
        "environment": dict(os.environ),
        "working folder": sorted(os.listdir(".")),
        "home": sorted(os.listdir(pathlib.Path.home())),
        "temporary files": sorted(
            name for name in os.listdir(tempfile.gettempdir()) if not name.startswith(OTHERS)
        ),
        "shared memory": sorted(os.listdir("/dev/shm")),
        "sockets": sorted(str(c.laddr) for c in psutil.Process().net_connections()),
        "process": (os.getcwd(), os.getuid(), os.umask(os.umask(0)), socket.getdefaulttimeout()),
    }


def test_the_corpus_is_there(corpus):
    assert rows()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("wrap", [as_it_is, as_torch_zip, as_legacy], ids=lambda f: f.__name__)
def test_no_hostile_file_leaves_a_trace(loader, corpus, wrap, policy):
    policy = policy.replace(limits=isoload.Limits(wall=WALL))
    loader.load(as_torch_zip(b"}."), "cpu")
    for row in rows():
        data = wrap((INDEX.parent / row["path"]).read_bytes())
        before = outside()
        started = time.monotonic()
        reader, words = opened(loader, data, policy)
        assert policy.fallback != "none" or reader in NO_PICKLE, row["path"]
        assert "Traceback" not in words, row["path"]
        assert words.isprintable(), row["path"]
        assert time.monotonic() - started < WALL + 5, row["path"]
        assert outside() == before, row["path"]


def test_the_report_names_what_a_file_wanted_called(loader, corpus):
    """For the files whose calls the index knows, under the policy that runs none of them."""
    missed = []
    for row in rows():
        if row["kind"] != "malicious" or not row["what"].startswith("calls os.system"):
            continue
        try:
            report = loader.open(
                (INDEX.parent / row["path"]).read_bytes(), "cpu", policy=isoload.Policy.upload()
            ).report
        except isoload.RefusedError as error:
            report = error.report
        except isoload.CheckpointError:
            continue  # no checkpoint and no whole pickle: nothing was unpickled
        if not any("system" in f"{call}" for call in report.calls):
            missed.append(row["path"])
    assert not missed
