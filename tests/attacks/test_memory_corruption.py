"""A. A worker against its parent's memory: segments that change, wrong numbers, pickles."""

from __future__ import annotations

import collections
import io
import itertools
import os
import pickle
import sys
import time

import hypothesis
import msgspec
import psutil
import pytest
import torch
from hypothesis import strategies as st

import isoload
from isoload import manifest as m
from isoload import wire
from sandbox import WorkerError, check_segment, map_segment
from tests.attacks import outside
from tests.attacks.conftest import calling, loaded, replying

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("unharmed")]

SANDBOXES = ("box", "taken_over", "loader")
ONES = torch.ones(16384).numpy().tobytes()
BAD_SEGMENTS = (
    "unsealed", "no seal on seals", "no shrink seal", "no grow seal", "no write seal",
    "future write", "shrinking", "sealed under a mapping", "sparse", "endless", "fifo", "pipe",
    "path", "directory", "socket", "listener", "channel", "null", "zero", "regular", "program",
    "huge", "event", "pidfd", "write only",
)  # fmt: skip


def tensor(**changes):
    """A reply with one float32 tensor of 16384 elements that fills the arena, changed."""
    storage = {"segment": m.ARENA, "offset": 0, "nbytes": len(ONES), "location": "cpu"}
    fields = {"storage": 0, "dtype": 0, "offset": 0, "size": [16384], "stride": [1]}
    for key, value in changes.items():
        (storage if key in storage and key != "offset" else fields)[key] = value
    if "storage_offset" in fields:
        storage["offset"] = fields.pop("storage_offset")
    return loaded(m.Tensor(**fields), storages=[m.Storage(**storage)])


def test_an_honest_segment_is_taken(taken_over):
    """Line 1: what all the others here are changes of."""
    assert taken_over.load(replying(tensor(), ONES)).sum() == 16384


@pytest.mark.parametrize("kind", BAD_SEGMENTS)
def test_no_segment_is_used_that_could_change_or_is_none(taken_over, kind):
    """Lines 1, 2, 3 and 21: unsealed, raced by a thread, truncated, sparse, or no file."""
    before = psutil.Process().memory_info().rss
    with pytest.raises(isoload.IsoloadError) as raised:
        taken_over.load(replying(tensor(), kind))
    assert isinstance(raised.value, (isoload.WorkerError, isoload.LimitError))
    assert psutil.Process().memory_info().rss - before < 64 << 20


@pytest.mark.parametrize("kind", BAD_SEGMENTS)
def test_the_check_of_a_segment_refuses_what_can_change(run, kind):
    """Lines 1, 2, 3 and 21: the sandbox's own check, without a manifest around it."""
    try:
        reply = run("shared:segment", kind.encode())
    except WorkerError:
        return  # the kernel did not let it be made, or the worker could not send it
    try:
        with pytest.raises(WorkerError):
            check_segment(reply.fds[0], 1 << 30)
    finally:
        os.close(reply.fds[0])


def test_who_kept_the_segment_is_dead_or_cannot_change_it(run):
    """Lines 1 and 2: the worker's children hold the segment, write and truncate for ever."""
    reply = run("shared:linger")
    try:
        size = check_segment(reply.fds[0], 1 << 20)
        with map_segment(reply.fds[0], size) as mapping:
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                assert mapping[:6] == b"\x01" * 6
                assert os.fstat(reply.fds[0]).st_size == size
    finally:
        os.close(reply.fds[0])


def test_a_segment_more_or_less_is_the_workers_fault(taken_over):
    """Line 3: none where one is pointed into, the source twice, and many."""
    for segments in (
        (),
        (ONES, ONES),
        (ONES,) * 16,
        ("source", "source"),
        (ONES[:-1],),
        ("empty",),
    ):
        with pytest.raises(isoload.WorkerError):
            taken_over.load(replying(tensor(), *segments))


HUGE = (2**63 - 1, 2**63, 2**64 - 1, -3, -(2**63), 1 << 40)


@pytest.mark.parametrize(
    "changes",
    [
        *({"storage_offset": value} for value in (1, *HUGE)),
        *({"nbytes": value} for value in (len(ONES) + 1, *HUGE)),
        *({"segment": value} for value in (2, -2, *HUGE)),
        *({"offset": value} for value in (1, *HUGE)),
        *({"size": [value]} for value in (16385, *HUGE)),
        *({"stride": [value]} for value in (2, *HUGE)),
        *({"size": [1, 16384], "stride": [value, 1], "offset": 1} for value in (0, *HUGE)),
        *({"dtype": value} for value in (len(m.DTYPES), *HUGE)),
        *({"storage": value} for value in (1, *HUGE)),
        *({"flags": value} for value in (16, 2, *HUGE)),
        *({"attrs": value} for value in (0, 1, -2, *HUGE)),
        {"size": [2**32, 2**32], "stride": [0, 0]},
        {"size": [2**21] * 3, "stride": [2**21] * 3},
        {"size": [1] * 1_000_000, "stride": [1] * 1_000_000},
        {"size": [16384, 1]},
        {"size": []},
        {"storage_offset": 2, "nbytes": len(ONES) - 4, "size": [1]},
        {"dtype": m.DTYPES.index("float64")},
        {"dtype": m.DTYPES.index("quint8")},
        {"dtype": m.DTYPES.index("complex128"), "flags": m.CONJ},
        {"location": "\x1b[2J"},
        {"location": "x" * 10_000},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_numbers_that_point_outside_are_refused(taken_over, changes):
    """Line 4: each number of a tensor and of its storage, negative, too large, or overflowing."""
    with pytest.raises(isoload.WorkerError):
        taken_over.load(replying(tensor(**changes), ONES))


def parts(*tensors):
    """(arena, storages, nodes) of int64 or float32 tensors."""
    arena, storages, nodes = b"", [], []
    for value in tensors:
        storages.append(m.Storage(m.ARENA, len(arena), value.nbytes, "cpu"))
        dtype = m.DTYPES.index(str(value.dtype).removeprefix("torch."))
        nodes.append(m.Tensor(len(nodes), dtype, 0, [*value.shape], [*value.stride()]))
        arena += value.numpy().tobytes()
        arena += b"\0" * (-len(arena) % 64)
    return arena, storages, nodes


BROKEN = (isoload.WorkerError, isoload.CheckpointError)


@pytest.mark.parametrize("index", [-1, 3, 2**31, 2**62, -(2**63)])
def test_sparse_indices_out_of_range_never_reach_a_kernel_of_torch(taken_over, index):
    """Line 4: COO and each compressed layout, whose indices torch itself does not check."""
    arena, storages, nodes = parts(torch.tensor([[0, index]]), torch.ones(2))
    coo = m.SparseCoo(indices=0, values=1, size=[3], coalesced=True)
    with pytest.raises(BROKEN):
        taken_over.load(replying(loaded(*nodes, coo, storages=storages), arena)).to_dense()
    arena, storages, nodes = parts(torch.tensor([0, 1, 2]), torch.tensor([0, index]), torch.ones(2))
    for layout in ("sparse_csr", "sparse_csc"):
        csr = m.SparseCompressed(layout=layout, compressed=0, plain=1, values=2, size=[2, 2])
        with pytest.raises(BROKEN):
            taken_over.load(replying(loaded(*nodes, csr, storages=storages), arena)).to_dense()
    arena, storages, nodes = parts(torch.tensor([0, index, 2]), torch.tensor([0, 1]), torch.ones(2))
    csr = m.SparseCompressed(layout="sparse_csr", compressed=0, plain=1, values=2, size=[2, 2])
    with pytest.raises(BROKEN):
        taken_over.load(replying(loaded(*nodes, csr, storages=storages), arena)).to_dense()


def test_quantization_and_nested_tensors_stay_in_their_bounds(taken_over):
    """Line 4: axes, scales of the wrong length, ragged offsets beyond the values."""
    arena, storages, nodes = parts(torch.ones(4), torch.zeros(4).long(), torch.ones(4))
    quint8 = m.DTYPES.index("quint8")
    storages.append(m.Storage(m.ARENA, 0, 4, "cpu"))
    for axis, scales in itertools.product((1, -2, 2**40, 0), (0, 2, 3)):
        node = m.Quantized(3, quint8, 0, [2, 2], [2, 1], axis=axis, scales=scales, zero_points=1)
        with pytest.raises(BROKEN):
            taken_over.load(replying(loaded(*nodes, node, storages=storages), arena))
    for offsets in ([0, 9, 4], [-1, 2, 4], [0, 2**62, 4], [4, 2, 0]):
        arena, storages, nodes = parts(torch.ones(4), torch.tensor(offsets))
        jagged = m.NestedJagged(values=0, offsets=1)
        with pytest.raises(BROKEN):
            taken_over.load(replying(loaded(*nodes, jagged, storages=storages), arena))
        arena, storages, nodes = parts(
            torch.ones(4),
            torch.tensor([[offsets[1]], [2]]),
            torch.tensor([[1], [1]]),
            torch.tensor([0, offsets[0]]),
        )
        strided = m.NestedStrided(buffer=0, sizes=1, strides=2, offsets=3)
        try:
            value = taken_over.load(replying(loaded(*nodes, strided, storages=storages), arena))
        except BROKEN:
            continue
        assert sum(part.numel() for part in value.unbind()) <= 8


WORDS = (-(2**63), -2, -1, 0, 1, 2, 3, 4, 7, 100, 2**31, 2**62, 2**63, 2**64 - 1)
LEAVES = (None, True, 1.5, float("nan"), b"", b"\xff", "", "cpu", "builtins.eval", "\ud800", [], {})


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_a_manifest_changed_anywhere_is_refused_or_well_formed(taken_over, data):
    """Line 4: one to four values of a reply with every kind of node, through a worker."""
    reply = msgspec.msgpack.decode(wire.encode_reply(EVERYTHING[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        places = [*_places(reply)]
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(st.sampled_from(WORDS + LEAVES))
    try:
        encoded = msgspec.msgpack.encode(reply)
    except (OverflowError, UnicodeEncodeError):
        return
    try:
        _touch(taken_over.load(replying(encoded, EVERYTHING[1]), "cpu"))
    except isoload.InternalError:
        raise
    except isoload.IsoloadError:
        pass


def _places(value):
    """Every (container, key) of a decoded reply."""
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = range(len(holder)) if isinstance(holder, list) else [*holder]
        for key in keys:
            yield holder, key
            if isinstance(holder[key], (list, dict)):
                stack.append(holder[key])


def _touch(value, depth=0):
    """Read every tensor in a result."""
    if isinstance(value, torch.Tensor):
        dense = value.dequantize() if value.is_quantized else value
        assert dense.numel() >= 0
        if dense.layout == torch.strided and not dense.is_nested and dense.device.type == "cpu":
            bytes(
                dense.detach().resolve_conj().resolve_neg().reshape(-1).view(-1).untyped_storage()
            )
    elif isinstance(value, dict) and depth < 20:
        for item in value.values():
            _touch(item, depth + 1)
    elif isinstance(value, (list, tuple)) and depth < 20:
        for item in value:
            _touch(item, depth + 1)


def _everything():
    arena, storages, nodes = parts(
        torch.arange(24.0).reshape(4, 6),
        torch.tensor([[0, 1, 2]]),
        torch.ones(3),
        torch.tensor([0, 1, 3]),
        torch.tensor([0, 0, 1]),
    )
    storages.append(m.Storage(m.ARENA, 0, 16, "cpu"))
    nodes += [
        m.SparseCoo(indices=1, values=2, size=[3], coalesced=True),
        m.SparseCompressed("sparse_csr", compressed=3, plain=4, values=2, size=[2, 2]),
        m.NestedJagged(values=0, offsets=3),
        m.Quantized(5, m.DTYPES.index("quint8"), 0, [4, 4], [4, 1], scale=0.5, zero_point=3),
        "key", 7, 2.5, None, m.Bytes(b"bytes"), m.BigInt(b"\0" * 9), m.Complex(1.0, 2.0),
        m.Named("dtype", "float32"), m.Size([1, 2]), m.Tuple([9, 10, 11]),
    ]  # fmt: skip
    count = len(nodes)
    keys = [*range(9, 9 + count)]
    names = [f"name{index}" for index in range(count)]
    nodes += [m.List([*range(count)]), *names]
    keys = [*range(count + 1, 2 * count + 1)]
    nodes.append(m.Dict(keys=keys, values=[*range(count)], kind="OrderedDict"))
    return loaded(*nodes, storages=storages), arena


EVERYTHING = _everything()


def test_what_is_changed_above_is_good_before_the_change(taken_over):
    """Line 4: else every change would be refused for want of a good start."""
    loaded_value = taken_over.load(replying(*EVERYTHING), "cpu")
    assert isinstance(loaded_value, collections.OrderedDict)
    _touch(loaded_value)


class Audit:
    """What this interpreter was asked to do meanwhile. An audit hook cannot be taken out again."""

    EVENTS = ("pickle.find_class", "exec", "compile", "import", "os.system", "subprocess.Popen")
    active = None

    def __enter__(self):
        self.seen = []
        Audit.active = self
        return self

    def __exit__(self, *exc):
        Audit.active = None

    @staticmethod
    def hook(event, arguments):
        if Audit.active is not None and event in Audit.EVENTS:
            Audit.active.seen.append((event, str(arguments)[:200]))


sys.addaudithook(Audit.hook)


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/isoload-attack",)


def save(obj, **options):
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def test_a_pickle_as_the_reply_is_refused_and_never_read(taken_over, tmp_path):
    """Line 5: a pickle in the reply, the segment, each text: no find_class, exec, import."""
    data = pickle.dumps(Payload())
    replies = [
        replying(data),
        replying(b"\x80\x04." + data),
        replying(tensor(), data),
        replying(loaded(m.Bytes(data))),
        replying(loaded(m.Named("global", "os.system"))),
        replying(loaded(m.Named("global", "builtins.eval"))),
        replying(loaded(m.Named("device", "cpu; import os"))),
        replying(loaded("x", m.Value("os.system", [0]))),
        replying(loaded("x", m.Opaque("os.system", (0,)))),
        replying(loaded(m.NumpyDtype("O"))),
        replying(loaded(m.NumpyDtype("f4,os.system"))),
        replying(loaded(m.Bytes(data), reader="x", container="os.system")),
    ]
    for reply in replies:  # once beforehand, so that nothing is imported for the first time below
        with _either():
            repr(taken_over.load(reply))
    with Audit() as audit:
        for reply in replies:
            with _either():
                repr(taken_over.load(reply))
    assert audit.seen == []


@pytest.mark.parametrize("segments", [(), (ONES,), ("fifo", "source"), (ONES, ONES, "directory")])
def test_a_file_that_every_worker_leaves_to_another_is_refused(taken_over, segments):
    """Line 25: a light worker may leave a file to one with torch, and that one to nobody. What they
    send with it is let go of."""
    with pytest.raises(isoload.WorkerError, match="left the file"):
        taken_over.load(replying(m.Passed(), *segments))


def test_no_load_unpickles_or_runs_anything_in_the_parent(loader):
    """Line 5: honest files, and pickles that run code."""
    files = [
        save({"a": torch.ones(3)}),
        save({"a": torch.ones(3)}, _use_new_zipfile_serialization=False),
        save(torch.nn.Linear(2, 2)),
        save([Payload(), torch.ones(2)]),
        pickle.dumps(Payload()),
    ]
    for data in files:
        with _either():
            loader.load(data, "cpu")
    with Audit() as audit:
        for data in files:
            with _either():
                loader.load(data, "cpu")
    assert audit.seen == []


class _either:
    """An IsoloadError or none: never another exception."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, isoload.IsoloadError)


@pytest.mark.parametrize(
    "name",
    [
        "numpy", "sum", "__class__", "__dict__", "_backward_hooks", "grad", "data", "shape",
        "__reduce_ex__", "__torch_function__", "requires_grad", "grad_fn", "_version", "to",
    ],
)  # fmt: skip
def test_a_tensors_attributes_hide_nothing_of_it(taken_over, name):
    """Line 6: an entry of its __dict__ that would shadow a method, or be a hook."""
    attrs = m.Dict(keys=[0], values=[1])
    node = m.Tensor(0, 0, 0, [2], [1], attrs=2)
    storage = m.Storage(m.ARENA, 0, 8, "cpu")
    with pytest.raises(isoload.WorkerError):
        taken_over.load(replying(loaded(name, "evil", attrs, node, storages=[storage]), ONES))


def test_an_attribute_of_its_own_is_data(taken_over):
    """Line 6: what is left of it when it hides nothing."""
    attrs = m.Dict(keys=[0], values=[1])
    node = m.Tensor(0, 0, 0, [2], [1], attrs=2)
    storage = m.Storage(m.ARENA, 0, 8, "cpu")
    value = taken_over.load(replying(loaded("tag", "x", attrs, node, storages=[storage]), ONES))
    assert value.tag == "x"
    assert value.tolist() == [1, 1]


def _hook(*_):
    raise AssertionError("a hook of the file ran in the parent")


def test_hooks_and_subclasses_of_a_file_do_not_come_over(loader):
    """Line 6: backward hooks, a module's hooks, a tensor's own methods."""
    hooked = torch.ones(2, requires_grad=True)
    hooked.__dict__["numpy"] = "evil"
    module = torch.nn.Linear(2, 2)
    module._forward_hooks[0] = print
    module.weight._backward_hooks = collections.OrderedDict({0: print})
    for obj in (hooked, module, {"weights": hooked}, [module.weight]):
        try:
            result = loader.load(save(obj), "cpu")
        except isoload.IsoloadError:
            continue
        for value in _tensors(result):
            assert type(value) in (torch.Tensor, torch.nn.Parameter)
            assert value._backward_hooks is None or not value._backward_hooks
            assert callable(value.numpy)
            assert value.grad_fn is None


def _tensors(value, depth=0):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, isoload.Opaque):
        yield from _tensors([value.args, value.state, value.items], depth + 1)
    elif isinstance(value, dict) and depth < 10:
        for item in value.values():
            yield from _tensors(item, depth + 1)
    elif isinstance(value, (list, tuple)) and depth < 10:
        for item in value:
            yield from _tensors(item, depth + 1)


def test_a_subclass_is_a_tensor_inside_an_opaque_and_never_the_class(taken_over):
    """Line 6: the name of any class, one that exists in the parent among them."""
    storage = m.Storage(m.ARENA, 0, 8, "cpu")
    inner = m.Tensor(0, 0, 0, [2], [1])
    for name in ("torch.nn.parameter.UninitializedParameter", "os.system", "builtins.object"):
        reply = loaded(inner, m.Subclass(0, name), storages=[storage])
        with _either():
            value = taken_over.load(replying(reply, ONES))
            assert type(value) in (isoload.Opaque, torch.Tensor)


def test_the_parent_survives_every_frame_in_its_place(taken_over):
    """Line 4: the sandbox's own frames are cut, doubled and foreign under a load."""
    for request in (b"", b"\x00", b"\xff" * 64, b"\x03" + b"\0" * 30, b"\0" * 9):
        with pytest.raises((isoload.WorkerError, isoload.LimitError)):
            taken_over.load(calling("wire:garbage", request))
    assert outside.descendants()
