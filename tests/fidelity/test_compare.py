"""The comparison itself: it must see each kind of difference, or the other tests here prove
nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch

from .compare import assert_same

_TENSOR = torch.arange(6.0)
_TEXT = "shared text"


def _attributed(value: int) -> torch.Tensor:
    tensor = torch.zeros(2)
    tensor.tag = value
    return tensor


def _metadata(value: int) -> OrderedDict[str, int]:
    made: OrderedDict[str, int] = OrderedDict()
    made._metadata = value  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1, True),
        (0.0, -0.0),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([_TENSOR, _TENSOR.clone()], [_TENSOR, _TENSOR]),
        ([_TENSOR, _TENSOR[:]], [_TENSOR, _TENSOR]),
        ([_TENSOR, _TENSOR], [_TENSOR, _TENSOR[:]]),
        ([_TENSOR[:3], _TENSOR[3:]], [_TENSOR[:3].clone(), _TENSOR[3:].clone()]),
        ([_TENSOR[:3].clone(), _TENSOR[3:].clone()], [_TENSOR[:3], _TENSOR[3:]]),
        (_TENSOR[:3], _TENSOR[:3].clone()),
        (_TENSOR.view(2, 3), _TENSOR.view(3, 2)),
        (_TENSOR, torch.nn.Parameter(_TENSOR, False)),
        (_TENSOR.clone().requires_grad_(), _TENSOR.clone()),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.complex64).conj()),
        (_attributed(1), _attributed(2)),
        (_metadata(1), _metadata(2)),
        (["".join(["shared ", "text"]), _TEXT], [_TEXT, _TEXT]),
        (torch.eye(2).to_sparse(), torch.eye(2)),
        (torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16)),
        ({1, 2}, {1, 2.0}),
    ],
)
def test_a_difference_is_seen(actual: Any, expected: Any) -> None:
    with pytest.raises(AssertionError):
        assert_same(actual, expected)


def test_a_copy_is_the_same() -> None:
    graph: list[Any] = [_TENSOR, _TENSOR[2:], {"a": _TEXT, "b": (_TEXT, 1.5)}, _attributed(3)]
    graph.append(graph)
    assert_same(copy.deepcopy(graph), graph)
