"""Any graph that torch.load(weights_only=True) opens comes back as torch.load gives it."""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoload import manifest as m
from isoload.worker.readers import read
from isoload.worker.source import WorkerSource

from .compare import assert_same
from .graphs import Maker
from .inprocess import cross_bytes

GRAPHS = int(os.environ.get("ISOLOAD_TESTS_GRAPHS", "2000"))
"""Graphs in one run of the suite, over all formats."""

FORMATS: dict[str, tuple[float, dict[str, Any]]] = {
    "zip": (0.5, {}),
    "legacy": (0.2, {"_use_new_zipfile_serialization": False}),
    "zip, protocol 3": (0.1, {"pickle_protocol": 3}),
    "zip, protocol 4": (0.1, {"pickle_protocol": 4}),
    "zip, protocol 5": (0.1, {"pickle_protocol": 5}),
}
