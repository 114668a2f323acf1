"""A large storage reaches the device whole, in chunks, and no buffer is filled while it is being
sent.

Where there is no CUDA device, one that torch's own dispatcher is told of: what `isoload.staging`
asks torch for is what a real one would be asked for.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from isoload import staging
from isoload.placement import Placement
from isoload.staging import copy_to_cuda

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor on the device: `held` stands for its memory.

    To C++ a meta tensor, as torch's own fake ones are: for CUDA it would ask a driver."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="meta")
        made.held = held
        return made

    def untyped_storage(self):
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor on a device that is not there any more")


class Stream:
    """Does what was queued when it is waited for, and no sooner."""

    current: Stream

    def __init__(self, device):
        assert device == CUDA
        self.queued = []
        self.after = []

    def wait_stream(self, other):
        self.after.append(other)

    def synchronize(self):
        for work in self.queued:
            work()
        self.queued.clear()


@contextlib.contextmanager
def on_stream(stream):
    before, Stream.current = Stream.current, stream
    yield
    Stream.current = before


class Device(TorchDispatchMode):
    """CUDA's part of torch's dispatch, for the operators that staging uses."""

    # The mode of fake tensors: under it torch does not ask for a driver.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self):
        super().__init__()
        self.pinned = []
        self.made = []
        self.sent = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is aten.empty.memory_format:
            return self.empty(args, kwargs)
        if not any(isinstance(arg, OnDevice) for arg in args):
            return func(*args, **kwargs)
        if func in (aten.split.Tensor, aten.detach.default):
            return tree_map(OnDevice, func(args[0].held, *args[1:], **kwargs))
        assert func is aten.copy_.default, func
        return self.copy(*args)

    def empty(self, args, kwargs):
        pinned = kwargs.pop("pin_memory", None)
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            made = OnDevice(aten.empty.memory_format(*args, **{**kwargs, "device": "cpu"}).fill_(7))
            self.made.append(made)
            return made
        made = aten.empty.memory_format(*args, **kwargs)
        if pinned:
            self.pinned.append(made)
        return made

    def copy(self, target, source, non_blocking=False):
        assert non_blocking
        assert any(source.data_ptr() == pinned.data_ptr() for pinned in self.pinned)
        assert Stream.current.after == [DEFAULT], "the target may still be in use on that stream"
        Stream.current.queued.append(lambda: target.held.copy_(source))
        self.sent += 1
        return target


DEFAULT = Stream(CUDA)


@pytest.fixture
def device(monkeypatch):
    Stream.current = DEFAULT
    for name, value in {
        "Stream": Stream,
        "stream": on_stream,
        "current_stream": lambda device: Stream.current,
        "is_available": lambda: True,
        "device_count": lambda: 1,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with Device() as device:
        yield device


@pytest.mark.parametrize("nbytes", [1, 15, 16, 17, 32, 100, 160])
def test_every_byte_arrives(device, nbytes):
    data = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    storage = copy_to_cuda(data.untyped_storage(), CUDA, chunk=16)
    (target,) = device.made
    assert storage._cdata == target.untyped_storage()._cdata
    assert target.held.equal(data)
    assert len(device.pinned) == 2
    assert device.sent == -(-nbytes // 16)


def test_a_large_storage_is_placed_by_staging_and_a_small_one_is_not(device, monkeypatch):
    monkeypatch.setattr("isoload.placement.LARGE", 100)
    # Without what the worker's modules register, where other tests have imported them.
    own = [entry for entry in torch.serialization._package_registry if entry[0] >= 10]
    monkeypatch.setattr(torch.serialization, "_package_registry", own)
    data = torch.randint(0, 256, (100,), dtype=torch.uint8)
    placed = Placement("cuda:0").storage(data.untyped_storage(), "cpu")
    assert placed._cdata == device.made[0].untyped_storage()._cdata
    assert device.made[0].held.equal(data)
    with mock.patch("isoload.placement.copy_to_cuda", side_effect=AssertionError):
        assert Placement("cpu").storage(data.untyped_storage(), "cuda:0").device.type == "cpu"
        small = data[:99].clone().untyped_storage()
        with mock.patch("torch.serialization.default_restore_location", return_value=small) as own:
            Placement("cuda:0").storage(small, "cpu")
        own.assert_called_once_with(small, "cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_large_storage_reaches_cuda():
    data = torch.randint(0, 256, (staging.LARGE + 12345,), dtype=torch.uint8)
    placed = Placement("cuda:0").storage(data.untyped_storage(), "cpu")
    assert placed.device == CUDA
    there = torch.empty(0, dtype=torch.uint8, device="cuda:0").set_(placed)
    assert there.cpu().equal(data)
