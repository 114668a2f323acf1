"""map_location means what it means to torch.load: for every form, tag and error."""

from __future__ import annotations

import io
from typing import Any
from unittest import mock

import pytest
import torch

from isoload.placement import Placement
from tests.fidelity.compare import assert_same
from tests.fidelity.inprocess import cross_bytes
from tests.fidelity.test_values import VALUES

TAGS = (
    "cpu",
    "cuda:0",
    "cuda:7",
    "cuda",
    "mps",
    "meta",
    "xla:1",
    "privateuseone:0",
    "hpu",
    "nowhere",
)


def saved(*tags: str) -> bytes:
    """A file with a tensor of each tag, as a machine with that device would have saved it."""
    file = io.BytesIO()
    tensors = [torch.arange(4.0) + index for index, _ in enumerate(tags)]
    tag_of = {t.untyped_storage()._cdata: tag for t, tag in zip(tensors, tags, strict=True)}
    with mock.patch("torch.serialization.location_tag", lambda s: tag_of[s._cdata]):
        torch.save([*tensors, tensors[0][1:3]], file)
    return file.getvalue()


def outcome(load: Any) -> Any:
    try:
        return load()
    except Exception as error:
        return type(error), str(error)


def _to_meta(storage: Any, tag: str) -> Any:
    return torch.UntypedStorage(storage.nbytes(), device="meta") if tag != "cpu" else None


def _clone(storage: Any, tag: str) -> Any:
    return storage.clone()


def _raise(storage: Any, tag: str) -> Any:
    raise LookupError(tag)


DEVICES: dict[str, Any] = {
    "None": None,
    "cpu": "cpu",
    "meta": "meta",
    "cuda:3": "cuda:3",
    "unknown": "nowhere",
    "device": torch.device("cpu"),
    "meta device": torch.device("meta"),
    "cuda device": torch.device("cuda", 1),
    "dict": {"cuda:0": "cpu", "mps": "meta", "nowhere": "cpu"},
    "dict away": {"cpu": "nowhere"},
    "callable": _clone,
    "callable or saved": _to_meta,
    "callable of None": lambda storage, tag: None,
    "callable that raises": _raise,
    "callable of a str": lambda storage, tag: "cpu",
    "callable of a typed storage": lambda storage, tag: torch.FloatStorage(4),
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("name", DEVICES)
def test_placement_is_torch_loads(name: str, tag: str) -> None:
    data = saved(tag, "cpu")
    device = DEVICES[name]
    expected = outcome(lambda: torch.load(io.BytesIO(data), map_location=device, weights_only=True))
    actual = outcome(lambda: cross_bytes(data, device=device)[0])
    if isinstance(expected, tuple):
        assert actual == expected
    else:
        assert_same(actual, expected)


@pytest.mark.parametrize("name", ["COO", "CSR", "BSC", "per tensor", "per channel", "nested"])
@pytest.mark.filterwarnings("ignore")
def test_the_rarer_tensors_on_another_device_are_torch_loads(name: str) -> None:
    file = io.BytesIO()
    torch.save([VALUES[name]], file)
    data = file.getvalue()
    expected = outcome(lambda: torch.load(io.BytesIO(data), "meta", weights_only=True))
    actual = outcome(lambda: cross_bytes(data, device="meta")[0])
    assert type(actual) is type(expected)
    if isinstance(expected, tuple):
        assert actual[0] is expected[0]
    else:
        assert_same(actual, expected)


def test_a_callable_is_called_once_for_each_storage_with_its_tag() -> None:
    calls: list[tuple[str, int, str]] = []

    def note(storage: Any, tag: str) -> Any:
        calls.append((tag, storage.nbytes(), type(storage).__name__))
        return storage

    cross_bytes(saved("cuda:1", "mps", "cpu"), device=note)
    assert calls == [(tag, 16, "UntypedStorage") for tag in ("cuda:1", "mps", "cpu")]


@pytest.mark.parametrize("device", [1, 1.5, ["cpu"], object()])
def test_a_wrong_device_is_refused_before_anything_is_opened(device: Any) -> None:
    with pytest.raises(TypeError, match="device must be"):
        Placement(device)


def test_a_restorer_that_the_caller_registered_is_asked_first() -> None:
    seen = []

    def restore(storage: Any, location: str) -> Any:
        seen.append(location)
        return storage if location == "mine" else None

    registry = torch.serialization._package_registry
    before = [*registry]
    torch.serialization.register_package(1, lambda storage: None, restore)
    try:
        placed = Placement().storage(torch.UntypedStorage(4), "mine")
        Placement().storage(torch.UntypedStorage(4), "cpu")
    finally:
        registry[:] = before
    assert placed.nbytes() == 4
    assert seen == ["mine", "cpu"]
