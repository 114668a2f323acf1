"""One load, end to end, through a real confined worker."""

from __future__ import annotations

import collections
import ctypes
import hashlib
import io
import math
import os
import pathlib
import random
import signal
import threading
import time
from typing import Any

import psutil
import pytest
import torch

import isoload
import sandbox
from isoload.copying import ByKernel, ByThreads, _Pages, copying
from isoload.memory import HUGE_PAGE

pytestmark = pytest.mark.isolation


def save(obj: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def state_dict() -> dict[str, torch.Tensor]:
    return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4)).state_dict()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_comes_back_as_torch_load_gives_it(loader, legacy):
    data = save(state_dict(), _use_new_zipfile_serialization=not legacy)
    expected = torch.load(io.BytesIO(data), weights_only=True)
    actual = loader.load(data, "cpu")
    assert type(actual) is type(expected) is collections.OrderedDict
    assert list(actual) == list(expected)
    assert actual._metadata == expected._metadata
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor)
        assert actual[name].dtype == tensor.dtype
        assert actual[name].stride() == tensor.stride()


def test_shared_storages_views_identity_and_cycles_survive(loader):
    base = torch.arange(12.0).reshape(3, 4)
    items: list[Any] = [base, base, base.t(), base[1:, ::2]]
    items.append(items)
    items.append({"same": base, "nan": math.nan, "set": {1, "a", (2, 3)}})
    loaded = loader.load(save(items), "cpu")
    assert loaded[0] is loaded[1] is loaded[5]["same"]
    assert loaded[4] is loaded
    assert loaded[2].untyped_storage()._cdata == loaded[0].untyped_storage()._cdata
    loaded[0][1, 2] = 99
    assert loaded[2][2, 1] == 99
    assert loaded[3][0, 1] == 99
    assert loaded[5]["set"] == {1, "a", (2, 3)}
    assert math.isnan(loaded[5]["nan"])


def test_parameters_are_parameters(loader):
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    loaded = loader.load(save([parameter, torch.ones(2, requires_grad=True)]), "cpu")
    assert type(loaded[0]) is torch.nn.Parameter
    assert not loaded[0].requires_grad
    assert loaded[1].requires_grad


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_written_to_a_tensor_does_not_reach_the_file(loader, tmp_path, mmap):
    path = tmp_path / "model.pt"
    path.write_bytes(save({"weight": torch.zeros(1000)}))
    before = path.read_bytes()
    first = loader.load(path, "cpu", mmap=mmap)["weight"]
    second = loader.load(path, "cpu", mmap=mmap)["weight"]
    first.fill_(7)
    assert second.sum() == 0
    assert path.read_bytes() == before


def test_a_snapshot_outlives_the_file(loader, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(save({"weight": torch.ones(100_000)}))
    loaded = loader.load(path, "cpu")
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()
    assert loaded["weight"].sum() == 100_000


def test_a_file_object_is_read_from_its_position(loader):
    file = io.BytesIO(b"header--" + save({"weight": torch.ones(3)}))
    file.seek(8)
    assert loader.load(file, "cpu")["weight"].tolist() == [1, 1, 1]


def test_the_report_says_what_happened(loader, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(save({"a": torch.zeros(3, 4), "b": [torch.zeros(2, dtype=torch.int8)]}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    report = loader.open(path, "cpu", sha256=digest).report
    assert report.reader == "weights_only"
    assert report.container == "zip"
    assert report.sha256 == digest
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in report.tensors] == [
        ("a", "float32", (3, 4), 48),
        ("b.0", "int8", (2,), 2),
    ]
    assert report.tensor_bytes == 50
    assert {layer.name for layer in report.layers.layers} >= {"network", "filesystem", "memory"}
    assert report.usage.wall > 0
    assert str(path) in str(report)
    assert report.to_dict()["tensors"][0]["shape"] == [3, 4]


def test_inspect_tells_the_same_without_the_tensors(loader):
    data = save({"a": torch.zeros(3, 4)})
    report = loader.inspect(data)
    assert [t.name for t in report.tensors] == ["a"]
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert report.reader == "weights_only"


def test_another_digest_is_an_integrity_error(loader):
    data = save({"a": torch.zeros(1)})
    for call in (loader.load, loader.inspect, loader.state_dict):
        with pytest.raises(isoload.IntegrityError, match="nothing was loaded"):
            call(data, sha256="0" * 64)


def test_a_pickled_module_comes_back_as_an_opaque_with_its_weights(loader):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    loaded = loader.load(save(model), "cpu")
    assert isinstance(loaded, isoload.Opaque)
    assert loaded.name == "torch.nn.modules.container.Sequential"
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_strict_refuses_what_weights_only_refuses_and_says_for_which_globals(loader):
    with pytest.raises(isoload.RefusedError) as raised:
        loader.load(save(torch.nn.Linear(1, 1)), policy=isoload.Policy.strict())
    (attempt,) = raised.value.report.attempts
    assert attempt.reader == "weights_only"
    assert "torch.nn.modules.linear.Linear" in attempt.globals


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"hello world, this is text", ""),
        (b"PK\x03\x04" + b"\0" * 200, ""),
        (save({"a": torch.zeros(1000)})[:2000], ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "LFS"),
    ],
)
def test_what_is_no_checkpoint_is_a_checkpoint_error(loader, data, word):
    with pytest.raises(isoload.CheckpointError) as raised:
        loader.load(data, "cpu")
    assert word in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_a_wrong_argument_is_found_before_any_worker_starts(loader):
    data = save({"a": torch.ones(1)})
    with pytest.raises(TypeError):
        loader.load(42)
    with pytest.raises(TypeError):
        loader.load(data, policy="strict")
    with pytest.raises(ValueError, match="64 hexadecimal"):
        loader.load(data, sha256="abc")
    with pytest.raises(RuntimeError):
        loader.load(data, "no-such-device")
    with pytest.raises(FileNotFoundError):
        loader.load("/no/such/file.pt")


def test_map_location_is_applied_once_a_storage_with_its_saved_tag(loader):
    base = torch.arange(6.0)
    calls = []

    def place(storage, location):
        calls.append((type(storage).__name__, location))

    loaded = loader.load(save([base, base[2:], torch.ones(2)]), place)
    assert [location for _, location in calls] == ["cpu", "cpu"]
    assert loaded[1].data_ptr() == loaded[0].data_ptr() + 8


def test_placement_on_meta(loader):
    assert loader.load(save({"a": torch.ones(3)}), "meta")["a"].device.type == "meta"


def test_a_cuda_device_that_is_not_there_raises_torchs_own_error(loader):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    data = save({"a": torch.ones(3)})
    with pytest.raises(RuntimeError, match="CUDA device"):
        loader.load(data, "cuda:0")


def test_state_dict_finds_the_weights(loader):
    weights = state_dict()
    data = save({"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}})
    found = loader.state_dict(data, "cpu")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_limits_hold_a_load(loader):
    policy = isoload.Policy(limits=isoload.Limits(wall=1e-6, cpu=10))
    with pytest.raises(isoload.LimitError) as raised:
        loader.load(save(state_dict()), policy=policy)
    assert raised.value.limit == "wall"


def test_many_threads_share_a_loader(loader):
    data = save(state_dict())
    results = []

    def work():
        results.extend(len(loader.load(data, "cpu")) for _ in range(4))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [len(state_dict())] * 16


def test_a_load_leaves_no_descriptor_or_process(loader):
    data = save(state_dict())
    loader.load(data, "cpu")
    before = settled(lambda: len(os.listdir("/proc/self/fd")))
    children = settled(lambda: len(psutil.Process().children(recursive=True)))
    for _ in range(5):
        loader.load(data, "cpu")
    assert settled(lambda: len(os.listdir("/proc/self/fd"))) == before
    assert settled(lambda: len(psutil.Process().children(recursive=True))) == children


def settled(count):
    """The number once it has been the same for a while: workers are buried in the background."""
    value, since, deadline = count(), time.monotonic(), time.monotonic() + 20
    while time.monotonic() < min(deadline, since + 1):
        time.sleep(0.05)
        if count() != value:
            value, since = count(), time.monotonic()
    return value


def test_a_closed_loader_says_so():
    loader = isoload.Loader()
    loader.close()
    with pytest.raises(isoload.IsoloadError, match="closed"):
        loader.load(save({}))


@pytest.fixture
def lent(tmp_path):
    """A file in the format from before torch 1.6 that is large enough to be lent to the worker."""

    def write(extra: Any = None) -> Any:
        tensors = {f"t{i}": torch.full((1 << 20,), float(i)) for i in range(5)}
        path = tmp_path / "legacy.pt"
        torch.save({**tensors, "extra": extra}, path, _use_new_zipfile_serialization=False)
        return path

    return write


@pytest.mark.parametrize("extra", [None, torch.device("cpu"), collections.ChainMap({"a": 1})])
def test_a_lent_file_is_not_what_the_result_lies_on(loader, lent, extra):
    """Read by the fast reader, by torch's and by the inert one; then the file is overwritten."""
    path = lent(extra)
    loaded = loader.open(path, "cpu", policy=isoload.Policy.upload())
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert not [line for line in loaded.report.warnings if "snapshot" in line]
    for i in range(5):
        assert torch.equal(loaded.object[f"t{i}"], torch.full((1 << 20,), float(i)))


def test_a_file_with_a_digest_is_not_lent(loader, lent, monkeypatch):
    """The bytes that are hashed are the bytes that are read."""
    path = lent()
    monkeypatch.setattr(loader._boxes.light, "reopen", lambda fd: pytest.fail("it was lent"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loader.load(path, "cpu", sha256=digest)["t1"][0] == 1


def test_a_file_that_cannot_be_mapped_read_only_is_copied_and_the_report_says_so(loader, tmp_path):
    path = tmp_path / "deleted.pt"
    torch.save(state_dict(), path)
    with path.open("rb") as file:
        path.unlink()
        loaded = loader.open(f"/proc/self/fd/{file.fileno()}", "cpu", mmap=True)
    assert [line for line in loaded.report.warnings if "a snapshot was made" in line]
    assert loaded.object.keys() == state_dict().keys()


def test_a_slow_file_object_keeps_no_worker_waiting():
    """Or a few slow uploads would be all the workers that there may be."""

    class Slow(io.BytesIO):
        def read(self, *args):
            asked.set()
            assert answer.wait(60)
            return super().read(*args)

    asked, answer = threading.Event(), threading.Event()
    with isoload.Loader(spares=0, max_workers=1) as loader:
        loader.load(save({"a": 1}))
        slow = threading.Thread(target=loader.load, args=(Slow(save({"a": 2})),))
        slow.start()
        try:
            assert asked.wait(60)
            assert loader.load(save({"a": 3})) == {"a": 3}
        finally:
            answer.set()
            slow.join()


@pytest.fixture(params=[5, 20], ids=["by kernel", "by threads"])
def large(tmp_path, request):
    """A file whose snapshot is taken while the worker reads the file itself."""
    path = tmp_path / "large.pt"
    torch.save({f"t{i}": torch.full((1 << 20,), float(i)) for i in range(request.param)}, path)
    return path


def assert_large(result):
    for i, tensor in enumerate(result.values()):
        assert torch.equal(tensor, torch.full((1 << 20,), float(i)))


def test_a_large_file_is_read_while_its_snapshot_is_taken(loader, large):
    loaded = loader.open(large, "cpu")
    assert "snapshot" in loaded.report.timings
    large.write_bytes(b"\xff" * large.stat().st_size)
    assert_large(loaded.object)


@pytest.mark.parametrize("end", ["replied", "died"])
def test_what_was_read_of_a_file_that_changed_counts_for_nothing(loader, large, monkeypatch, end):
    """It changes after its snapshot was taken and before the worker is done: the worker's word is
    of other bytes. Another one reads the snapshot."""
    run, replies = loader._boxes.light.run, []

    def changing(*args, **named):
        copying = not replies
        reply = run(*args, **named)
        replies.append(reply)
        if copying:
            with large.open("r+b") as file:
                file.write(b"PK")
            if end == "died":
                raise sandbox.WorkerError("the worker was ended by SIGBUS", signal.SIGBUS)
        return reply

    monkeypatch.setattr(loader._boxes.light, "run", changing)
    result = loader.load(large, "cpu")
    assert len(replies) == 2
    assert_large(result)


def test_a_file_that_becomes_shorter_while_it_is_read_is_damaged(loader, large, monkeypatch):
    """Its worker may have been ended by SIGBUS: what is said is what the snapshot says."""
    run = loader._boxes.light.run
    shorter = threading.Event()

    def truncating(*args, **named):
        os.truncate(large, 1 << 20)
        shorter.set()
        return run(*args, **named)

    for kind in (ByKernel, ByThreads):

        def late(*args, copy=kind._copy):
            assert shorter.wait(60)
            copy(*args)

        monkeypatch.setattr(kind, "_copy", late)
    monkeypatch.setattr(loader._boxes.light, "run", truncating)
    with pytest.raises(isoload.CheckpointError):
        loader.load(large, "cpu")


def test_a_large_file_object_is_lent_and_read_to_its_end(loader, large):
    with large.open("rb") as file:
        loaded = loader.open(file, "cpu")
        assert file.read() == b""
    assert "snapshot" in loaded.report.timings
    assert_large(loaded.object)


def test_a_large_file_object_that_was_read_from_is_no_whole_file(loader, large, tmp_path):
    path = tmp_path / "behind.pt"
    path.write_bytes(b"before" + large.read_bytes())
    with path.open("rb") as file:
        file.read(6)
        assert_large(loader.load(file, "cpu"))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("count", [3 << 20, 9 << 20])
@pytest.mark.parametrize("length", range(4))
def test_a_large_legacy_file_lies_aligned_wherever_its_tensors_begin(
    loader, tmp_path, length, count, mmap
):
    path = tmp_path / "legacy.pt"
    state = {"x" * length: torch.arange(count), "odd": torch.ones(5), "y": torch.ones(7)}
    state["bytes"] = torch.arange(3, dtype=torch.uint8)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    loaded = loader.open(path, "cpu", mmap=mmap)
    assert loaded.report.reader == "weights_only"
    assert bool(loaded.report.warnings) is mmap
    for name, tensor in state.items():
        assert loaded.object[name].data_ptr() % tensor.element_size() == 0
        assert torch.equal(loaded.object[name], tensor)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 4097, (8 << 20) + 5, (64 << 20) + 12_345])
@pytest.mark.parametrize("at_end", [False, True])
def test_a_copy_is_the_file_whoever_makes_it(tmp_path, monkeypatch, threads, size, at_end):
    path = tmp_path / "file"
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(threads)))
    with path.open("rb") as file:
        made = copying(file.fileno(), size, "file", at_end=at_end)
    memory, same = made.finish()
    assert same
    assert memory[made.lead :] == content
    assert (made.lead + size) % 64 == 0 or not at_end


def test_a_large_copy_gets_huge_pages_where_they_are_wanted(tmp_path, monkeypatch):
    """They need an aligned range: a mapping that begins anywhere never gets one by halves."""
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this kernel gives no huge pages")
    monkeypatch.setattr(_Pages, "next", lambda self, huge, copied: True)
    path = tmp_path / "file"
    path.write_bytes(bytes((64 << 20) + 12_345))
    with path.open("rb") as file:
        made = copying(file.fileno(), path.stat().st_size, "file")
    memory, _ = made.finish()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert address % HUGE_PAGE == 0
    assert _huge_kilobytes(address) > 0


def _huge_kilobytes(address):
    """Of the mapping at that address."""
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if "-" in word and not word.endswith(":"):
            start, end = (int(part, 16) for part in word.split("-"))
            inside = start <= address < end
        elif inside and word == "AnonHugePages:":
            return int(line.split()[1])
    return 0


def test_a_copy_in_one_thread_where_there_may_be_no_more(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(130 << 20))
    start, started = threading.Thread.start, []

    def first(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", first)
    with path.open("rb") as file:
        made = copying(file.fileno(), path.stat().st_size, "file")
    assert made.finish()[1]


@pytest.mark.parametrize("size", [1 << 20, 130 << 20])
@pytest.mark.parametrize("error", [OSError(5, "bad disk"), MemoryError()])
def test_what_stops_a_copying_thread_is_raised(tmp_path, monkeypatch, size, error):
    """A piece that nobody copied would be zeros."""

    def broken(*args):
        raise error

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "sendfile", broken)
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    with path.open("rb") as file:
        made = copying(file.fileno(), size, "file")
    with pytest.raises(type(error)):
        made.finish()


def test_a_copy_that_was_never_begun_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    before = os.listdir("/proc/self/fd")
    with path.open("rb") as file:
        for size in (1 << 20, 128 << 20):
            copying(file.fileno(), size, "file").cancel()
    assert os.listdir("/proc/self/fd") == before


def test_what_a_forked_child_writes_to_a_large_result_stays_its_own(loader, large):
    result = loader.load(large, "cpu")
    pid = os.fork()
    if pid == 0:
        result["t1"].numpy()[:] = -1
        os._exit(0)
    os.waitpid(pid, 0)
    assert_large(result)


@pytest.mark.parametrize("broken", [b"\x80\x02.", b"PK\3\4"])
def test_a_failed_load_of_a_large_file_leaves_no_descriptor_or_thread(loader, tmp_path, broken):
    path = tmp_path / "broken.pt"
    path.write_bytes(broken + bytes(16 << 20))
    loader.load(save(state_dict()), "cpu")
    before = settled(lambda: len(os.listdir("/proc/self/fd")))
    for _ in range(3):
        with pytest.raises(isoload.IsoloadError):
            loader.load(path, "cpu")
    assert settled(lambda: len(os.listdir("/proc/self/fd"))) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "isoload-copy"]
