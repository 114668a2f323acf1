"""Zygotes and workers start where they are needed, end when they should, and leave nothing."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sandbox import (
    ClosedError,
    IsolationError,
    LimitError,
    Limits,
    Sandbox,
    SandboxError,
    WorkerError,
)
from tests.sandbox.conftest import ENTRIES, Run, Traces, wait_for

pytestmark = pytest.mark.isolation

ROOT = str(Path(__file__).resolve().parents[2])
ECHO = f"{ENTRIES}:echo"


def zygote_of(box: Sandbox) -> psutil.Process:
    assert box._zygote is not None
    return psutil.Process(box._zygote.pid)


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A caller in a process of its own."""

    def script(code: str, *arguments: str, **named: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *(arguments or ("-c", code))],
            env=os.environ | {"PYTHONPATH": ROOT},
            stdout=subprocess.PIPE,
            text=True,
            **named,  # type: ignore[call-overload]
        )

    return script


def test_two_hundred_runs_leave_everything_as_it_was(isolated: Sandbox, run: Run) -> None:
    def mixed(number: int) -> None:
        if number % 2 == 0:
            assert run("echo", b"x").data == b"x"
            return
        name, request = [
            ("die", b"segv"),
            ("forks", b""),
            ("raise_named", b"ValueError"),
            ("flood_fds", b"17"),
            ("two_replies", b""),
        ][number // 2 % 5]
        try:
            for fd in run(name, request, limits=Limits(wall=2)).fds:
                os.close(fd)
        except (WorkerError, LimitError):
            pass

    for number in range(20):
        mixed(number)
    gc.collect()
    time.sleep(0.5)
    before = Traces()
    for number in range(200):
        mixed(number)
    gc.collect()
    Traces.wait_until(before)


def test_a_closed_sandbox_leaves_nothing(isolated: Sandbox) -> None:
    def once() -> None:
        with Sandbox(preload=[ENTRIES], spares=2) as box:
            box.run(ECHO, b"x")
        with pytest.raises(ClosedError):
            box.run(ECHO, b"x")
        box.close()

    once()
    before = Traces()
    once()
    gc.collect()
    Traces.wait_until(before)


def test_spares_are_kept_to_their_number(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], spares=2) as box:
        box.start()
        for _ in range(3):
            deadline = time.monotonic() + 10
            while len(box._idle) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(box._idle) == 2
            box.run(ECHO, b"x")
        assert len(box._idle) <= 2


def test_a_reserved_worker_serves_the_run_that_it_was_reserved_for(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], max_workers=1) as box:
        box.run(ECHO, b"x")
        assert wait_for(lambda: box._slots._free._value)
        with box.reserve() as reserved:
            begun = reserved.begun
            assert begun is not None
            assert box.run(ECHO, b"once", reserved=reserved).data == b"once"
            assert box.run(ECHO, b"twice", reserved=reserved).data == b"twice"
            assert reserved.over[0] == begun
            assert len(reserved.over) == 2


def test_a_reserved_worker_that_nobody_used_is_gone(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], max_workers=1) as box:
        box.run(ECHO, b"x")
        before = Traces()
        with pytest.raises(ZeroDivisionError), box.reserve():
            raise ZeroDivisionError
        Traces.wait_until(before)
        assert box.run(ECHO, b"again").data == b"again"


def test_nothing_is_reserved_where_a_spare_waits_or_no_worker_is_free(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], spares=1, max_workers=1) as box:
        box.run(ECHO, b"x")
        wait_for(lambda: box._idle)
        with box.reserve() as reserved:
            assert reserved.begun is None
    with Sandbox(preload=[ENTRIES], max_workers=1) as box:
        box.run(ECHO, b"x")
        with box.reserve(), box.reserve() as reserved:
            assert reserved.begun is None


def test_a_reserved_worker_whose_zygote_dies_serves_or_is_replaced(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES]) as box:
        for pause in (*(n / 5000 for n in range(12)), 0.5):  # also between its fork and its word
            box.run(ECHO, b"x")
            with box.reserve() as reserved:
                time.sleep(pause)
                zygote_of(box).kill()
                assert box.run(ECHO, b"y", reserved=reserved).data == b"y"


def test_a_closed_sandbox_reserves_nothing_and_its_run_says_so(isolated: Sandbox) -> None:
    box = Sandbox(preload=[ENTRIES])
    box.run(ECHO, b"x")
    with box.reserve() as reserved:
        box.close()
        with pytest.raises(ClosedError):
            box.run(ECHO, b"x", reserved=reserved)
    with box.reserve() as reserved, pytest.raises(ClosedError):
        box.run(ECHO, b"x", reserved=reserved)


def test_a_spare_that_died_is_replaced(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], spares=1) as box:
        box.run(ECHO, b"x")
        deadline = time.monotonic() + 10
        while not box._idle and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(box._idle[0]._pid, signal.SIGKILL)
        time.sleep(0.1)
        assert box.run(ECHO, b"again").data == b"again"


def test_many_threads_may_call_at_one_time(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], spares=1, max_workers=4) as box:
        answers: list[bytes] = []

        def work(number: int) -> None:
            for turn in range(5):
                answers.append(box.run(ECHO, f"{number}.{turn}".encode()).data)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == sorted(f"{n}.{t}".encode() for n in range(8) for t in range(5))


def test_a_dead_zygote_is_replaced_and_the_log_says_so(
    isolated: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    with Sandbox(preload=[ENTRIES]) as box:
        box.run(ECHO, b"x")
        zygote_of(box).kill()
        time.sleep(0.05)
        with caplog.at_level(logging.WARNING, "sandbox"):
            assert box.run(ECHO, b"again").data == b"again"
    assert "the zygote ended (exit status -9" in caplog.text


def test_a_run_outlives_its_zygote(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES]) as box:
        box.run(ECHO, b"x")
        timer = threading.Timer(0.3, zygote_of(box).kill)
        timer.start()
        assert box.run(f"{ENTRIES}:nap", b"0.8").data == b"rested"


def test_close_ends_a_run_that_is_under_way(isolated: Sandbox) -> None:
    box = Sandbox(preload=[ENTRIES])
    box.run(ECHO, b"x")
    threading.Timer(0.3, box.close).start()
    start = time.monotonic()
    with pytest.raises(ClosedError):
        box.run(f"{ENTRIES}:stop_itself", b"", limits=Limits(wall=30))
    assert time.monotonic() - start < 3
    box.close()


def test_an_interrupt_ends_the_worker(isolated: Sandbox, run: Run) -> None:
    run("echo", b"x")
    time.sleep(0.3)
    before = Traces()
    main = threading.main_thread().ident
    assert main is not None
    # A shell starts what it puts in the background with SIGINT ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run("spin", limits=Limits(wall=30, cpu=30))
    finally:
        signal.signal(signal.SIGINT, previous)
    Traces.wait_until(before)


_KILLED = f"""
import sys, psutil, threading, time
from sandbox import Sandbox, Limits
box = Sandbox(preload=[{ENTRIES!r}], spares=1)
box.run({ECHO!r}, b"x")
work = lambda: box.run("{ENTRIES}:forks_and_stays", b"", limits=Limits(wall=60))
threading.Thread(target=work, daemon=True).start()
time.sleep(1)
print([p.pid for p in psutil.Process().children(recursive=True)], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("what", ["the parent", "the parent and the zygote"])
def test_all_are_gone_a_second_after_the_parent_is_killed(
    isolated: Sandbox, script: Callable[..., subprocess.Popen[str]], what: str
) -> None:
    caller = script(_KILLED)
    assert caller.stdout is not None
    pids = json.loads(caller.stdout.readline())
    assert len(pids) >= 6  # zygote, sentinel, opener, two workers, and what one of them forked
    if what != "the parent":
        zygote = psutil.Process(caller.pid).children()[0]
        zygote.send_signal(signal.SIGSTOP)
        caller.kill()
        zygote.kill()
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert gone(pids, 1.0), [psutil.Process(pid) for pid in pids if _alive(pid)]
    assert _groups_of(caller.pid) == []


def _groups_of(pid: int) -> list[str]:
    found = []
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{folder}/{name}" for name in names if f"-{pid}-" in name and "isoload" in name]
    return found


def test_a_zygote_dies_with_a_parent_that_is_killed_during_the_preload(
    script: Callable[..., subprocess.Popen[str]],
) -> None:
    caller = script(
        "import psutil, time; from sandbox import Sandbox\n"
        "box = Sandbox(preload=['tests.sandbox.slow']); box.start()\n"
        "print(psutil.Process().children()[0].pid, flush=True); time.sleep(60)"
    )
    assert caller.stdout is not None
    zygote = int(caller.stdout.readline())
    importing = Path(f"/tmp/isoload-test-slow-{caller.pid}")
    while not importing.exists():
        time.sleep(0.01)
    importing.unlink()
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert gone([zygote], 1.0)


_ONE_RUN = (
    f"from sandbox import Sandbox\nbox = Sandbox(preload=[{ENTRIES!r}])\n"
    f"print(box.run({ECHO!r}, b'hello').data)\n"
)


def test_it_works_under_dash_c_and_from_stdin_and_in_a_file_without_a_main_guard(
    isolated: Sandbox, script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert script(_ONE_RUN).communicate(timeout=30)[0] == "b'hello'\n"
    caller = script("", "-", stdin=subprocess.PIPE)
    assert caller.communicate(_ONE_RUN, timeout=30)[0] == "b'hello'\n"
    (tmp_path / "plain.py").write_text(_ONE_RUN)
    assert script("", str(tmp_path / "plain.py")).communicate(timeout=30)[0] == "b'hello'\n"


def test_a_preload_beside_a_script_is_found(
    isolated: Sandbox, script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text("def entry(request, fds): return request, []")
    (tmp_path / "main.py").write_text(
        "from sandbox import Sandbox\nbox = Sandbox(preload=['beside'])\n"
        "print(box.run('beside:entry', b'hello').data)\n"
    )
    assert script("", str(tmp_path / "main.py")).communicate(timeout=30)[0] == "b'hello'\n"


def test_a_forked_child_has_a_zygote_of_its_own_and_holds_nothing_of_its_parents(
    isolated: Sandbox, run: Run
) -> None:
    with Sandbox(preload=[ENTRIES], spares=1) as box:
        box.run(ECHO, b"x")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                data = box.run(ECHO, b"from the child").data
                os.write(writing, data)
                box.close()
            finally:
                os._exit(0)
        os.close(writing)
        assert box.run(ECHO, b"meanwhile").data == b"meanwhile"
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"from the child"
        os.waitpid(pid, 0)


def test_a_child_forked_during_a_run_does_not_hold_the_worker_alive(
    isolated: Sandbox, script: Callable[..., subprocess.Popen[str]]
) -> None:
    caller = script(
        "import os, threading, time, psutil\nfrom sandbox import Sandbox, Limits\n"
        f"box = Sandbox(preload=[{ENTRIES!r}])\nbox.run({ECHO!r}, b'x')\n"
        f"work = lambda: box.run('{ENTRIES}:nap', b'50')\n"
        "threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.7)\n"
        "pids = [p.pid for p in psutil.Process().children(recursive=True)]\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.close(1)\n    time.sleep(5)\n    os._exit(0)\n"
        "print([child, *pids], flush=True)\ntime.sleep(60)\n"
    )
    assert caller.stdout is not None
    child, *pids = json.loads(caller.stdout.readline())
    assert len(pids) >= 3
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert gone(pids, 1.0)
    assert psutil.pid_exists(child)
    os.kill(child, signal.SIGKILL)


def test_a_warm_up_runs_once_in_the_zygote(isolated: Sandbox) -> None:
    with Sandbox(preload=[ENTRIES], warm_up=f"{ENTRIES}:warm_up") as box:
        assert box.run(f"{ENTRIES}:is_warm", b"").data == b"true"


@pytest.mark.parametrize("data", [b"", b"plain\0data", os.urandom(700_000)], ids=len)
def test_a_warm_up_is_given_its_data(isolated: Sandbox, data: bytes) -> None:
    warm_up = f"{ENTRIES}:warm_up_with"
    with Sandbox(preload=[ENTRIES], warm_up=warm_up, warm_up_data=data) as box:
        for _ in range(2):
            assert box.run(f"{ENTRIES}:what_was_given", b"").data == data
            zygote_of(box).kill()  # the next one is given it too


def test_data_for_a_zygote_that_does_not_read_holds_nobody_up(isolated: Sandbox) -> None:
    before = Traces()
    warm_up, data = f"{ENTRIES}:warm_up_with", bytes(50 << 20)
    with Sandbox(preload=["tests.sandbox.slow"], warm_up=warm_up, warm_up_data=data) as box:
        box.start()
        zygote_of(box).suspend()
        threading.Timer(0.2, zygote_of(box).kill).start()
        with pytest.raises(SandboxError, match="could not start"):
            box.run(ECHO, b"")
    Path(f"/tmp/isoload-test-slow-{os.getpid()}").unlink(missing_ok=True)
    Traces.wait_until(before)


def test_data_without_a_warm_up_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is none"):
        Sandbox(warm_up_data=b"x")


@pytest.mark.parametrize(("spares", "rehearsed"), [(0, b"false"), (1, b"true")])
def test_a_rehearsal_runs_in_spares_alone(isolated: Sandbox, spares: int, rehearsed: bytes) -> None:
    rehearsal = f"{ENTRIES}:rehearse"
    with Sandbox(preload=[ENTRIES], rehearsal=rehearsal, spares=spares) as box:
        box.start()
        deadline = time.monotonic() + 60
        while len(box._idle) < spares and time.monotonic() < deadline:
            time.sleep(0.01)
        assert box.run(f"{ENTRIES}:is_rehearsed", b"").data == rehearsed


@pytest.mark.parametrize(
    ("preload", "warm_up", "words"),
    [
        (["no_such_module_here"], None, "no_such_module_here"),
        ([ENTRIES], f"{ENTRIES}:fail_to_warm_up", "this warm-up fails"),
        ([ENTRIES], f"{ENTRIES}:warm_up_with", "missing 1 required"),
        ([ENTRIES], f"{ENTRIES}:start_a_thread", "2 threads"),
    ],
)
def test_a_zygote_that_cannot_serve_says_why(
    preload: list[str], warm_up: str | None, words: str
) -> None:
    with Sandbox(preload=preload, warm_up=warm_up) as box:
        for _ in range(2):
            with pytest.raises(SandboxError, match=words):
                box.run(ECHO, b"")


def test_the_zygote_is_a_clean_process_that_cannot_be_read(isolated: Sandbox) -> None:
    isolated.run(ECHO, b"")
    zygote = zygote_of(isolated)
    environ = Path(f"/proc/{zygote.pid}/environ")
    if os.geteuid() == 0:
        names = {row.split(b"=")[0].decode() for row in environ.read_bytes().split(b"\0") if row}
        assert names <= {
            *("LC_ALL", "PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"),
            "GLIBC_TUNABLES",
            *("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
            *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ISOLOAD_TESTS_LANDLOCK_ABI"),
        }
    else:
        with pytest.raises(PermissionError):
            environ.read_bytes()
    assert zygote.num_threads() == 1
    assert os.getsid(zygote.pid) != os.getsid(0)


@pytest.mark.isolation
@pytest.mark.parametrize("writes", [True, False])
def test_a_zygote_keeps_compiled_modules_where_its_parent_does(
    script: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: bool,
) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    if not writes:
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    process = script("from sandbox import Sandbox\nwith Sandbox() as box: box.isolation()")
    assert process.wait(60) == 0
    assert bool([*tmp_path.rglob("zygote.*.pyc")]) is writes


def test_start_does_not_wait(isolated: Sandbox) -> None:
    with Sandbox(preload=["tests.sandbox.slow"]) as box:
        start = time.monotonic()
        box.start()
        assert time.monotonic() - start < 0.5
    Path(f"/tmp/isoload-test-slow-{os.getpid()}").unlink(missing_ok=True)


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with Sandbox() as box, pytest.raises(IsolationError, match="darwin"):
        box.run(ECHO, b"")


def test_close_ends_a_start_that_is_under_way() -> None:
    box = Sandbox(preload=["tests.sandbox.slow"])
    threading.Timer(0.5, box.close).start()
    start = time.monotonic()
    with pytest.raises(ClosedError):
        box.run(ECHO, b"")
    assert time.monotonic() - start < 2.5
    box.close()
    Path(f"/tmp/isoload-test-slow-{os.getpid()}").unlink(missing_ok=True)


def test_only_what_is_preloaded_of_a_callers_folder_is_seen_inside(
    isolated: Sandbox, script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "later.py").write_text("")
    (package / "entry.py").write_text(
        "import os, mine.later\ndef entry(request, fds):\n"
        "    above = os.path.dirname(os.path.dirname(__file__))\n"
        "    import importlib; importlib.reload(mine.later)\n"
        "    names = ['mine', 'secret.txt', 'other.py', '.git']\n"
        "    return repr([n for n in names if os.path.exists(f'{above}/{n}')]).encode(), []\n"
    )
    (tmp_path / "secret.txt").write_text("not for workers")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "main.py").write_text(
        "from sandbox import Sandbox\nbox = Sandbox(preload=['mine.entry'])\n"
        "print(box.run('mine.entry:entry', b'').data)\n"
    )
    out = script("", str(tmp_path / "main.py")).communicate(timeout=30)[0]
    assert out == """b"['mine']"\n"""


def test_on_windows_the_import_says_what_to_do() -> None:
    program = "import sys; sys.platform = 'win32'; import sandbox"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("use them within WSL 2")
