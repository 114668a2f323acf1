from __future__ import annotations

import pickle

import pytest

from isoload import errors
from isoload.report import Report
from sandbox import Layer, State


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (errors.CheckpointError("m.pt: is empty"), {}),
        (errors.RefusedError("m.pt: refused", Report("m.pt", 3)), {"report": Report("m.pt", 3)}),
        (errors.LimitError("m.pt: too large", "source", 5), {"limit": "source", "allowed": 5}),
        (
            errors.IsolationError("m.pt: no", (Layer("network", State.UNAVAILABLE, "", "why"),)),
            {"missing": (Layer("network", State.UNAVAILABLE, "", "why"),)},
        ),
        (errors.WorkerError("m.pt: died", 9, "detail"), {"signal": 9, "detail": "detail"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_crosses_a_process_pool_whole(error, attributes):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    for name, value in attributes.items():
        assert getattr(copy, name) == value
