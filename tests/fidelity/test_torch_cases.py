"""Counterparts of torch's own tests of loading, where the generated graphs do not reach: see
docs/fidelity.md for the list."""

from __future__ import annotations

import gzip
import io
import pickle
import warnings
import zipfile
from typing import Any

import pytest
import torch

from isoload.errors import CheckpointError

from .compare import assert_same, bits
from .inprocess import NotOpened, cross_bytes

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(obj: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(obj, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def both(data: bytes, **options: Any) -> Any:
    """Compare with torch.load; return isoload's object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.load(io.BytesIO(data), weights_only=True)
        actual, reader = cross_bytes(data, fallback="none", **options)
    assert reader == "weights_only"
    assert_same(actual, expected)
    return actual


@FORMATS
def test_storages_and_their_views_stay_together(zipped: bool) -> None:
    base = torch.randn(5, 5)
    part = base.reshape(-1)[1:4]
    one = torch.empty(0).set_(part.clone().untyped_storage(), 0, (3,), (1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        obj = [base, base, base.storage(), part.storage(), (one.storage(), one.storage()), one]
    loaded = both(saved(obj, zipped))
    loaded[0].fill_(10)
    assert loaded[1][0, 0] == 10
    assert loaded[2]._untyped_storage._cdata == loaded[0].untyped_storage()._cdata
    assert bits(loaded[2]._untyped_storage)[:4] == bits(torch.tensor([10.0]).untyped_storage())


@FORMATS
def test_a_storage_longer_than_its_tensor_keeps_its_length(zipped: bool) -> None:
    loaded = both(saved(torch.arange(100.0)[10:20], zipped))
    assert loaded.untyped_storage().nbytes() == 400
    assert loaded.storage_offset() == 10


@FORMATS
def test_a_parameter_shares_with_its_tensor(zipped: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    loaded = both(saved({"parameter": parameter, "data": parameter.data}, zipped))
    loaded["data"].fill_(5)
    assert loaded["parameter"].tolist() == [5, 5, 5]


def test_strings_of_python_2_are_decoded_as_torch_does() -> None:
    text = "żąąóżąż".encode()
    data = (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
        b"\x80\x02}(U\x10protocol_versionM\xe9\x03U\rlittle_endian\x88u."
        b"\x80\x02]U" + bytes([len(text)]) + text + b"a.\x80\x02]."
    )
    assert both(data) == [text.decode()]


def test_a_big_endian_file_is_swapped() -> None:
    tensor = torch.arange(6, dtype=torch.int32).view(2, 3)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(tensor))) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in entry.filename:
                data = tensor.numpy().astype(">i4").tobytes()
            new.writestr(entry.filename, data)
    assert both(out.getvalue()).tolist() == tensor.tolist()


def test_deflated_records_are_inflated() -> None:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(torch.zeros(1000)))) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    both(out.getvalue())


@FORMATS
def test_a_gzip_stream_is_opened(zipped: bool) -> None:
    obj = {"weight": torch.ones(3)}
    actual, _ = cross_bytes(gzip.compress(saved(obj, zipped)))
    assert_same(actual, obj)


class _Spoof:
    def __init__(self, layout: Any, *parts: Any) -> None:
        self.parts = (layout, parts)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_sparse_tensor, self.parts


_VALUES = torch.ones(1)
_BLOCKS = torch.ones(1, 1, 1)


@pytest.mark.parametrize(
    "spoof",
    [
        _Spoof(torch.sparse_coo, torch.tensor([[9], [0]]), _VALUES, torch.Size([3, 3])),
        _Spoof(torch.sparse_coo, torch.tensor([[-1], [0]]), _VALUES, torch.Size([3, 3])),
        *(
            _Spoof(layout, torch.tensor([3, 1]), torch.tensor([0]), _VALUES, torch.Size([1, 1]))
            for layout in (torch.sparse_csr, torch.sparse_csc)
        ),
        *(
            _Spoof(layout, torch.tensor([0, 9]), torch.tensor([0]), _BLOCKS, torch.Size([1, 1]))
            for layout in (torch.sparse_bsr, torch.sparse_bsc)
        ),
    ],
)
@FORMATS
def test_sparse_indices_are_validated_always(spoof: _Spoof, zipped: bool) -> None:
    with pytest.raises(CheckpointError, match="not valid"):
        cross_bytes(saved([spoof], zipped), fallback="none")


def test_an_unknown_protocol_or_magic_is_refused() -> None:
    legacy = saved([1], False)
    for data in (legacy[:20] + legacy[30:], pickle.dumps(3, 2) + legacy, b"\x80\x02."):
        with pytest.raises(NotOpened):
            cross_bytes(data, fallback="none")


def test_attributes_come_back_and_a_gradient_set_by_the_file_does_not() -> None:
    tensor = torch.zeros(2)
    made, _ = cross_bytes(saved(_WithState(tensor, {"tag": 1, "grad": torch.ones(2)})))
    assert made.tag == 1
    assert made.grad is None


class _WithState:
    def __init__(self, tensor: torch.Tensor, state: dict[str, Any]) -> None:
        self.tensor, self.state = tensor, state

    def __reduce__(self) -> Any:
        func, args = self.tensor.__reduce_ex__(2)  # type: ignore[misc]
        return torch._tensor._rebuild_from_type_v2, (func, torch.Tensor, args, self.state)
