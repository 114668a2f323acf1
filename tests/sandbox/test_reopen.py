"""A file opened again through a read-only mount: its holder can change nothing of it, not even as
its owner; and where that cannot be had it is an error, and nothing is left."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sandbox import Sandbox
from tests.sandbox.conftest import Traces, wait_for

pytestmark = pytest.mark.isolation


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "model.pt").write_bytes(b"weights")
    fd = os.open(tmp_path / "model.pt", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_it_is_the_same_file(box: Sandbox, opened: int) -> None:
    again = box.reopen(opened)
    try:
        assert os.path.samestat(os.fstat(opened), os.fstat(again))
        assert os.pread(again, 100, 0) == b"weights"
        assert not os.get_inheritable(again)
    finally:
        os.close(again)


CHANGES: dict[str, Callable[[int], object]] = {
    "mode": lambda fd: os.fchmod(fd, 0o777),
    "times": lambda fd: os.utime(fd, (0, 0)),
    "owner": lambda fd: os.fchown(fd, os.geteuid(), os.getegid()),
    "attributes": lambda fd: os.setxattr(fd, "user.changed", b"x"),
    "write again": lambda fd: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
    "truncate": lambda fd: os.truncate(f"/proc/self/fd/{fd}", 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_its_owner_can_change_nothing_through_it(box: Sandbox, opened: int, change: str) -> None:
    before = os.fstat(opened)
    again = box.reopen(opened)
    try:
        with pytest.raises(OSError, match="Read-only") as caught:
            CHANGES[change](again)
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(again)
    assert os.fstat(opened) == before


def test_a_file_without_a_path_is_an_error(box: Sandbox, opened: int, tmp_path: Path) -> None:
    (tmp_path / "model.pt").unlink()
    with pytest.raises(OSError, match="no read-only mount"):
        box.reopen(opened)
    memory = os.memfd_create("no path")
    with pytest.raises(OSError, match="no read-only mount"):
        box.reopen(memory)
    os.close(memory)


def test_another_file_at_its_path_is_an_error(box: Sandbox, opened: int, tmp_path: Path) -> None:
    """Deleted and made anew, under the very name that the kernel gives a deleted file too."""
    (tmp_path / "model.pt").unlink()
    (tmp_path / "model.pt (deleted)").write_bytes(b"other")
    with pytest.raises(OSError, match="another file") as caught:
        box.reopen(opened)
    assert caught.value.errno == errno.ESTALE


def test_it_works_also_after_the_zygote_was_killed(isolated: Sandbox, opened: int) -> None:
    with Sandbox() as box:
        os.close(box.reopen(opened))
        assert box._zygote is not None
        box._zygote._process.kill()
        os.close(box.reopen(opened))


def test_without_its_opener_it_is_an_error(isolated: Sandbox, opened: int) -> None:
    with Sandbox(preload=["tests.sandbox.entries"]) as box:
        box.isolation()
        assert box._zygote is not None
        _, opener = sorted(psutil.Process(box._zygote.pid).children(), key=_born)[:2]
        opener.suspend()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(box.reopen, opened)
            time.sleep(0.2)  # in its queue: the next request may meet ECONNRESET, and then EPIPE
            opener.kill()
            with pytest.raises(OSError, match="the opener"):
                waiting.result()
        for _ in range(2):
            with pytest.raises(OSError, match="the opener takes no request") as caught:
                box.reopen(opened)
            assert caught.value.errno == errno.EROFS
        assert box.run("tests.sandbox.entries:echo", b"x").data == b"x"


def test_a_sandbox_that_reopens_nothing_has_no_opener(isolated: Sandbox, opened: int) -> None:
    with Sandbox(preload=["tests.sandbox.entries"], reopens=False) as box:
        assert box.run("tests.sandbox.entries:echo", b"x").data == b"x"
        with pytest.raises(ValueError, match="reopens=False"):
            box.reopen(opened)
        assert box._zygote is not None
        zygote = psutil.Process(box._zygote.pid)
        assert wait_for(lambda: len(zygote.children()) == 1)  # its sentinel


def test_the_opener_stands_before_anything_is_preloaded() -> None:
    importing = Path(f"/tmp/isoload-test-slow-{os.getpid()}")
    with Sandbox(preload=["tests.sandbox.slow"]) as box:
        box.start()
        assert wait_for(importing.exists)
        importing.unlink()
        assert box._zygote is not None
        assert len(psutil.Process(box._zygote.pid).children()) == 2


def _born(process: psutil.Process) -> int:
    return process.pid


def test_nothing_is_left(box: Sandbox, opened: int, tmp_path: Path) -> None:
    os.close(box.reopen(opened))
    before = Traces()
    for _ in range(20):
        os.close(box.reopen(opened))
    (tmp_path / "model.pt").unlink()
    for _ in range(20):
        with pytest.raises(OSError, match="no read-only mount"):
            box.reopen(opened)
    Traces.wait_until(before)
