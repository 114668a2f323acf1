"""isoload works wherever torch.load does: no main guard, no file, no main thread is needed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading

import psutil
import pytest
import torch

import isoload

LOAD = "import sys, isoload, torch; print(isoload.load(sys.argv[1], 'cpu')['weight'].tolist())"
EXPECTED = [1.0, 2.0, 3.0]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.tensor(EXPECTED)}, path)
    return str(path)


def run(*args, stdin="", cwd=None):
    done = subprocess.run(
        [sys.executable, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_in_a_script_without_a_main_guard(tmp_path, path):
    script = tmp_path / "script.py"
    script.write_text(LOAD)
    assert run(str(script), path) == str(EXPECTED)


def test_under_python_c(path):
    assert run("-c", LOAD, path) == str(EXPECTED)


def test_from_stdin(path):
    assert run("-", path, stdin=LOAD) == str(EXPECTED)


def test_from_a_folder_with_modules_that_shadow_the_standard_library(tmp_path, path):
    for name in ("torch", "pickle", "socket", "sandbox"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    script = f"import sys; sys.path.pop(0); import os; os.chdir({str(tmp_path)!r}); {LOAD}"
    assert run("-c", script, path, cwd="/") == str(EXPECTED)


def test_as_in_a_notebook_where_main_has_no_file_and_a_loop_runs(path):
    # What ipykernel does: cells are compiled from text and executed in __main__ inside a running
    # loop.
    cell = textwrap.dedent(
        """
        import asyncio, sys
        async def kernel():
            exec(compile(sys.argv[2], "<cell>", "exec"), {"__name__": "__main__"})
        asyncio.run(kernel())
        """
    )
    assert run("-c", cell, path, LOAD) == str(EXPECTED)


def test_where_everything_is_found_by_pythonpath_alone(path):
    # As with `pip install --user`: the interpreter's own folders hold none of it.
    bare = os.path.join(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    done = subprocess.run(
        [bare, "-c", LOAD, path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == str(EXPECTED), done.stderr


def test_in_a_daemonic_process(path):
    script = textwrap.dedent(
        f"""
        import multiprocessing, sys
        def child():
            exec({LOAD!r})
        process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
        process.start(); process.join(); sys.exit(process.exitcode)
        """
    )
    assert run("-c", script, path) == str(EXPECTED)


def test_in_threads(path):
    results = []

    def work():
        results.append(isoload.load(path, "cpu")["weight"].tolist())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [EXPECTED] * 6


def test_inside_a_running_event_loop(path):
    async def both():
        loaded = isoload.load(path, "cpu")
        with isoload.Loader() as loader:
            objects = await asyncio.gather(*(loader.aload(path, "cpu") for _ in range(3)))
            report = await loader.ainspect(path)
            opened = await loader.aopen(path, "cpu")
        return [loaded, *objects, opened.object], report

    objects, report = asyncio.run(both())
    assert [obj["weight"].tolist() for obj in objects] == [EXPECTED] * 5
    assert report.reader == "weights_only"


def test_in_a_forked_server_worker_that_inherited_a_running_loader(path):
    assert isoload.load(path, "cpu")["weight"].tolist() == EXPECTED
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(isoload.load(path, "cpu")["weight"].tolist()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="ascii") as pipe:
        assert pipe.read() == str(EXPECTED)
    os.waitpid(pid, 0)
    # The parent's own loader is as it was.
    assert isoload.load(path, "cpu")["weight"].tolist() == EXPECTED


def test_a_forked_worker_does_not_keep_the_parents_workers_alive(path):
    # The child inherits every descriptor; the parent's close() must still end its zygote at once.
    with isoload.Loader() as loader:
        loader.load(path, "cpu")
        zygote = psutil.Process(loader._boxes.light._zygote.pid)
        family = [zygote, *zygote.children(recursive=True)]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)


def test_with_standard_streams_closed(path):
    script = f"import os, sys\nfor fd in (0, 2): os.close(fd)\n{LOAD}"
    assert run("-c", script, path) == str(EXPECTED)
