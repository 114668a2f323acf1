"""What a worker's cgroup promises: limits hold for all that it makes, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.layers import cgroup, cgroup_find, cgroup_host
from sandbox.limits import Limits

MIB = 1 << 20
LIMITS = Limits(memory=64 * MIB, processes=16)
ROOT = str(Path(__file__).resolve().parents[2])

pytestmark = pytest.mark.isolation


@pytest.fixture
def group() -> Iterator[cgroup.Group]:
    try:
        made = cgroup.Group.plan().make(LIMITS)
    except cgroup.CgroupUnavailable as error:
        pytest.skip(str(error))
    if not made.has_memory:
        made.remove()
        made.close()
        pytest.skip(made.layer.cause)
    yield made
    assert made.remove()
    made.close()


def joined(group: cgroup.Group, body: Callable[[], object]) -> int:
    """Fork a process that joins the group and then runs ``body``; returns its pid once joined."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for fd in group.join_fds:
                os.write(fd, b"0")
            os.write(writing, b"x")
            body()
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def folders(group: cgroup.Group) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}") + "/" + name for fd, name in group.dirs]


def fill_heap() -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x") * MIB)


def fill_memfd() -> None:
    fd = os.memfd_create("x")
    while True:
        os.write(fd, b"x" * MIB)


@pytest.mark.parametrize("fill", [fill_heap, fill_memfd])
def test_more_memory_than_allowed_is_death(group, fill):
    assert status_of(joined(group, fill)) == -signal.SIGKILL
    assert group.oom_killed()
    peak, _ = group.usage()
    assert LIMITS.memory // 2 < peak <= LIMITS.memory


def test_less_memory_than_allowed_is_life(group):
    assert status_of(joined(group, lambda: bytearray(b"x") * (16 * MIB))) == 0
    assert not group.oom_killed()
    peak, cpu = group.usage()
    assert 16 * MIB <= peak < LIMITS.memory
    assert cpu > 0


def test_a_fork_bomb_stops_at_the_limit_and_all_of_it_dies(group):
    def bomb() -> None:
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
        except OSError:
            time.sleep(60)

    pid = joined(group, bomb)
    deadline = time.monotonic() + 10
    pids: list[int] = []
    while len(pids) < LIMITS.processes and time.monotonic() < deadline:
        time.sleep(0.02)
        pids = group._parts[0].pids()
    assert len(pids) == LIMITS.processes
    assert group.remove()
    assert status_of(pid) == -signal.SIGKILL
    assert not any(Path(f"/proc/{pid}/stat").exists() and _alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_limits_written_at_dispatch_hold_for_who_joined_before(group):
    group.apply(replace(LIMITS, memory=256 * MIB))
    reading, writing = os.pipe()

    def wait_then_fill() -> None:
        os.read(reading, 1)
        fill_heap()

    pid = joined(group, wait_then_fill)
    group.apply(replace(LIMITS, memory=48 * MIB))
    os.write(writing, b"x")
    assert status_of(pid) == -signal.SIGKILL
    assert group.usage()[0] <= 48 * MIB
    os.close(reading)
    os.close(writing)


def test_it_lies_below_the_callers_own_group(group):
    own = [place.path for place in cgroup_find.places()]
    for folder in folders(group):
        above = os.path.dirname(folder)
        assert above in own or any(
            path.startswith(f"{above}/{cgroup_host.PREFIX}caller-") for path in own
        )


def test_nothing_of_it_is_left_after_remove(group):
    pid = joined(group, lambda: time.sleep(60))
    left = folders(group)
    assert all(os.path.isdir(folder) for folder in left)
    assert group.remove()
    assert not any(os.path.exists(folder) for folder in left)
    assert status_of(pid) == -signal.SIGKILL


def test_the_figures_are_kept_after_removal(group):
    status_of(joined(group, lambda: bytearray(b"x") * (16 * MIB)))
    before = group.usage()
    assert group.remove()
    assert group.usage()[0] == before[0] >= 16 * MIB


def test_somebody_else_may_remove_it_by_descriptor_and_name(group):
    for fd, name in list(group.dirs):
        os.rmdir(name, dir_fd=fd)
    assert group.remove()


def test_a_group_of_its_own_after_a_fork(group):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        other = cgroup.Group.plan().make(LIMITS)
        name = other.dirs[0][1]
        other.remove()
        other.close()
        os.write(writing, name.encode())
        os._exit(0)
    assert status_of(pid) == 0
    assert f"-{pid}-" in os.read(reading, 100).decode()
    assert f"-{os.getpid()}-" in group.dirs[0][1]
    assert all(os.path.isdir(folder) for folder in folders(group))
    os.close(reading)
    os.close(writing)


def test_what_a_killed_caller_left_is_swept(group):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    base = group.dirs[0][0]
    left = group.dirs[0][1].replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    os.mkdir(left, dir_fd=base)
    cgroup_host.sweep(cgroup_find.Directory(base))
    assert left not in os.listdir(base)
    assert group.dirs[0][1] in os.listdir(base)


def test_no_descriptor_is_left(group):
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        other = cgroup.Group.plan().make(LIMITS)
        other.remove()
        other.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_it_is_cheap(group):
    times = []
    for _ in range(50):
        start = time.perf_counter()
        other = cgroup.Group.plan().make(LIMITS)
        times.append(time.perf_counter() - start)
        other.remove()
        other.close()
    assert statistics.median(times) < 0.02  # 0.3 ms on real hardware; emulated kernels run this too


# -- cgroup v2: the caller in a leaf of its own group ------------------------------------------

CALLER = """\
import os, sys, time
from sandbox.layers import cgroup
from sandbox.limits import Limits
try:
    group = cgroup.Group.plan().make(Limits(memory=64 << 20, processes=16))
except cgroup.CgroupUnavailable as error:
    print("unavailable:", error.cause, flush=True)
    sys.exit()
def own():
    return open("/proc/self/cgroup").read().rpartition("::")[2].strip()
print(own(), group.dirs[0][1], flush=True)
"""
END = """\
sys.stdin.readline()
group.remove()
group.close()
assert cgroup.release()
print(own(), flush=True)
"""


@pytest.fixture
def delegated(group) -> Iterator[Path]:
    """A v2 group that stands for one that a service manager gave to a program."""
    if group._host.version != 2:
        pytest.skip("this host's controllers are on cgroup v1")
    path = Path(os.readlink(f"/proc/self/fd/{group.dirs[0][0]}")) / f"delegated-{os.getpid()}"
    path.mkdir()
    yield path
    for below in sorted(path.rglob("*"), reverse=True):
        if below.is_dir():
            below.rmdir()
    # Who cleaned up in it has moved into it last, and takes its time to die.
    deadline = time.monotonic() + 10
    while "populated 1" in (path / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    path.rmdir()


def started_in(folder: Path, script: str) -> subprocess.Popen[str]:
    join = f"open({str(folder / 'cgroup.procs')!r}, 'w').write('0')\n"
    return subprocess.Popen(
        [sys.executable, "-c", join + script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_caller_moves_to_a_leaf_and_back(delegated):
    caller = started_in(delegated, CALLER + END)
    own, name = caller.stdout.readline().split()
    assert os.path.dirname(own).endswith(delegated.name)
    assert os.path.basename(own).startswith("isoload-caller-")
    assert (delegated / name / "memory.max").read_text() == f"{64 * MIB}\n"
    assert (delegated / name / "memory.swap.max").read_text() == "0\n"
    out, _ = caller.communicate("\n")
    assert out.strip().endswith(delegated.name)
    assert caller.returncode == 0
    assert (delegated / "cgroup.subtree_control").read_text().split() == []
    assert not [entry for entry in delegated.iterdir() if entry.is_dir()]


def test_it_is_put_back_at_the_interpreters_exit(delegated):
    caller = started_in(delegated, CALLER + "group.remove(); group.close()\n")
    caller.communicate()
    assert (delegated / "cgroup.subtree_control").read_text().split() == []
    assert not [entry for entry in delegated.iterdir() if entry.is_dir()]


def test_another_program_in_the_own_group_is_named_and_left_alone(delegated):
    other = started_in(delegated, "import time; print('up', flush=True); time.sleep(60)")
    other.stdout.readline()
    caller = started_in(delegated, CALLER)
    out, _ = caller.communicate()
    assert out.startswith("unavailable: other processes live in this program's own cgroup")
    assert f"[{other.pid}]" in out
    assert str(other.pid) in (delegated / "cgroup.procs").read_text().split()
    other.kill()
    other.wait()
    assert not [entry for entry in delegated.iterdir() if entry.is_dir()]


def test_what_the_caller_started_moves_with_it(delegated):
    script = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        + CALLER
        + "print(open(f'/proc/{child.pid}/cgroup').read().strip(), flush=True)\n"
        + "group.remove(); group.close(); child.kill(); child.wait()\n"
    )
    caller = started_in(delegated, script)
    out, _ = caller.communicate()
    assert out.splitlines()[1].rpartition("/")[2].startswith("isoload-caller-")
    assert not [entry for entry in delegated.iterdir() if entry.is_dir()]


SURVIVOR = """\
read, write = os.pipe()
if os.fork() == 0:
    os.close(write)
    os.read(read, 1)  # end of file: the caller is dead
    for fd, name in group.dirs:
        os.rmdir(name, dir_fd=fd)
    cgroup.cleanup_leaf()
    os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_survivor_puts_the_group_back_when_the_caller_was_killed(delegated):
    caller = started_in(delegated, CALLER + SURVIVOR)
    caller.stdout.readline()
    assert caller.stdout.readline() == "ready\n"
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(entry.is_dir() for entry in delegated.iterdir()):
        time.sleep(0.05)
    assert not [entry for entry in delegated.iterdir() if entry.is_dir()]
    assert (delegated / "cgroup.subtree_control").read_text().split() == []


def test_cleanup_does_nothing_while_the_caller_lives(delegated):
    script = (
        CALLER
        + "if os.fork() == 0:\n    cgroup.cleanup_leaf()\n    os._exit(0)\n"
        + "os.wait(); print(os.path.isdir(sys.stdin.readline().strip()), flush=True)\n"
        + "group.remove(); group.close()\n"
    )
    caller = started_in(delegated, script)
    own, _ = caller.stdout.readline().split()
    out, _ = caller.communicate(f"{delegated / os.path.basename(own)}\n")
    assert out == "True\n"


SANDBOX = """\
import time
from sandbox import Sandbox
box = Sandbox(spares=1)
box.run("sandbox.throwaway:answer", b"", require=())
while not box._idle:
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_a_sandbox_whose_program_was_killed(delegated):
    program = started_in(delegated, SANDBOX)
    assert program.stdout.readline() == "ready\n"
    below = sorted(entry.name for entry in delegated.iterdir() if entry.is_dir())
    assert len(below) == 2, below  # the leaf with program and zygote, and the spare's group
    program.kill()
    program.wait()
    deadline = time.monotonic() + 30  # a second on real hardware
    while time.monotonic() < deadline and _lived_in(delegated):
        time.sleep(0.05)
    assert not _lived_in(delegated)
    assert (delegated / "cgroup.subtree_control").read_text().split() == []


def _lived_in(folder: Path) -> list[str]:
    """The subgroups of a group and its processes."""
    below = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    return below + (folder / "cgroup.procs").read_text().split()


# -- where the own group is: recorded hosts ----------------------------------------------------

SYSTEMD_SCOPE = {
    "proc/self/cgroup": "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n",
    "proc/self/mountinfo": "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
}
DOCKER_V2 = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "35 24 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
}
DOCKER_V1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
    "proc/self/mountinfo": (
        "36 35 0:31 /docker/abc /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n"
        "37 35 0:32 /docker/abc /sys/fs/cgroup/cpu\\054cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    ),
}
OUTSIDE = {
    "proc/self/cgroup": "0::/../../other.scope\n",
    "proc/self/mountinfo": "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            SYSTEMD_SCOPE,
            {2: "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope"},
        ),
        (DOCKER_V2, {2: "/sys/fs/cgroup"}),
        (DOCKER_V1, {1: "/sys/fs/cgroup/memory"}),
        (OUTSIDE, {}),
    ],
    ids=["systemd scope", "docker v2", "docker v1", "outside the cgroup namespace"],
)
def test_the_own_group_is_found(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in [*expected.values(), "/sys/fs/cgroup", "/sys/fs/cgroup/cpu,cpuacct"]:
        (tmp_path / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    found = cgroup_find.places(str(tmp_path))
    assert {place.version: place.path for place in reversed(found)} == expected
    if expected and 1 in expected:
        assert {name for place in found for name in place.controllers} == {
            "memory",
            "cpu",
            "cpuacct",
        }
