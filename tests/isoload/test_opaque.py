"""An Opaque holds and does nothing, and the weights are found in what people save."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from isoload.errors import CheckpointError
from isoload.opaque import Opaque, find_state_dict
from tests.fidelity.inprocess import cross_object


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 2, bias=False)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.head.weight
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("transient", torch.zeros(2), persistent=False)
        self.register_buffer("missing", None)
        self.register_parameter("absent", None)


def opaque(module: nn.Module) -> Opaque:
    made = cross_object(module)
    assert isinstance(made, Opaque)
    return made


def same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return [*actual] == [*expected] and all(actual[k].equal(expected[k]) for k in expected)


NET = _Net()
WEIGHTS = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}


def test_the_state_dict_of_a_module_is_torchs_own() -> None:
    found = opaque(NET).state_dict()
    assert same(found, NET.state_dict())
    assert found["head.weight"] is found["tied.weight"]


def test_what_is_no_module_has_no_state_dict() -> None:
    with pytest.raises(ValueError, match=r"no pickled nn\.Module"):
        Opaque("a.B").state_dict()


def test_a_module_that_holds_itself_ends() -> None:
    state: dict[str, Any] = {"_parameters": {"w": torch.ones(1)}, "_modules": {}}
    module = Opaque("torch.nn.Module", state=state)
    state["_modules"]["self"] = module
    assert [*module.state_dict()] == ["w"]


def test_modules_that_are_shared_without_end_are_refused() -> None:
    module: Any = None
    for _ in range(64):
        modules = {"a": module, "b": module} if module else {}
        module = Opaque("m", state={"_parameters": {}, "_modules": modules})
    with pytest.raises(CheckpointError, match="without end"):
        module.state_dict()


def test_it_is_inert() -> None:
    made = Opaque("a.B", state={"x": 1})
    with pytest.raises(AttributeError):
        _ = made.x  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        made()  # type: ignore[operator]
    assert made != Opaque("a.B", state={"x": 1})
    assert {made: 1}[made] == 1


def test_its_repr_is_short_and_printable() -> None:
    shown = repr(Opaque("\x1b]52;c;\u202e" + "x" * 10_000))
    assert shown.isprintable()
    assert len(shown) < 200


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(WEIGHTS, id="itself"),
        pytest.param({"state_dict": WEIGHTS, "epoch": 3}, id="state_dict"),
        pytest.param(
            {"model_state_dict": WEIGHTS, "optimizer_state_dict": {}}, id="model_state_dict"
        ),
        pytest.param({"model": WEIGHTS, "optimizer": {"state": {0: WEIGHTS}}}, id="model"),
        pytest.param({"module": WEIGHTS, "lr": 0.1}, id="deepspeed"),
        pytest.param({"ema": WEIGHTS, "model": None}, id="yolo, stripped"),
        pytest.param({"net": WEIGHTS, "acc": torch.tensor(0.5)}, id="net"),
        pytest.param({"generator_x": WEIGHTS, "best": torch.tensor(1.0)}, id="the only one"),
        pytest.param([WEIGHTS, 3], id="in a list"),
        pytest.param({"model": {"state_dict": WEIGHTS}}, id="deeper"),
        pytest.param(Opaque("a.Dict", items=WEIGHTS), id="a subclass of dict"),
        pytest.param(Opaque("a.Trainer", state={"model": WEIGHTS}), id="inside an object"),
        pytest.param(
            {"state_dict": WEIGHTS, "callbacks": {"best": {"x": torch.ones(3)}}, "epoch": 1},
            id="lightning",
        ),
    ],
)
def test_the_weights_are_found(checkpoint: Any) -> None:
    assert same(find_state_dict(checkpoint), WEIGHTS)


def test_the_weights_of_a_pickled_module_are_found() -> None:
    expected = NET.state_dict()
    module = opaque(NET)
    for checkpoint in (module, {"model": module, "ema": None}, {"model": None, "ema": module}):
        assert same(find_state_dict(checkpoint), expected)


def test_the_weights_of_a_script_module_are_found() -> None:
    inner = Opaque("__torch__.torch.nn.Linear", state={"weight": torch.ones(1), "training": True})
    outer = Opaque("__torch__.Net", state={"training": False, "fc": inner, "scale": torch.ones(2)})
    assert [*find_state_dict(outer)] == ["scale", "fc.weight"]


def test_an_ambiguous_file_lists_the_candidates() -> None:
    checkpoint = {"netG": WEIGHTS, "netD": OrderedDict(WEIGHTS), "step": 1}
    with pytest.raises(CheckpointError, match=r"key=: netG, netD"):
        find_state_dict(checkpoint)
    assert find_state_dict(checkpoint, "netD") is not WEIGHTS


def test_a_key_names_the_place() -> None:
    checkpoint = {"a": {"b.c": {"d": WEIGHTS}}, "model": {"x": torch.ones(1)}}
    for key in ("a", "a.b.c", "a.b.c.d"):
        assert same(find_state_dict(checkpoint, key), WEIGHTS)
    with pytest.raises(CheckpointError, match=r"no 'z' in the dict; it has: a, model"):
        find_state_dict(checkpoint, "z")
    with pytest.raises(CheckpointError, match="holds no weights"):
        find_state_dict({"x": 1}, "x")


@pytest.mark.parametrize(
    "checkpoint", [None, torch.ones(3), {}, {"lr": 1}, {"optimizer": WEIGHTS}, []]
)
def test_a_file_without_weights_says_so(checkpoint: Any) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        find_state_dict(checkpoint)
