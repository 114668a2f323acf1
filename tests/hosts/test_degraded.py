"""On a poorer host a run fails closed, in the words of its cause, or says what is weaker.

The hosts are made from this one, by root: a seccomp filter, a chroot, a container's mounts. The
causes that need another kernel are tested against recorded files in tests/sandbox/test_probe.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("degraded.py")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a poorer host")


def on(host: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, PROGRAM, host, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def layers(host: str) -> dict[str, dict[str, str]]:
    return json.loads(on(host))


def test_a_seccomp_filter_against_namespaces_fails_closed_and_is_named():
    told = layers("seccomp")
    for name in ("network", "process", "filesystem"):
        assert told[name]["state"] == "unavailable"
        assert "seccomp filter" in told[name]["cause"]
        assert told[name]["remedy"]
    said = on("seccomp", "run")
    assert said.startswith('["network", "process", "filesystem"]')
    assert "nothing was run" in said
    assert "seccomp filter" in said


def test_root_in_a_chroot_is_isolated_by_real_uids_and_told_why():
    told = layers("chroot")
    assert told["user"]["state"] == "partial"
    assert "chroot" in told["user"]["cause"]
    for name in ("network", "process", "filesystem", "privileges"):
        assert told[name]["state"] == "enforced", told[name]
    assert on("chroot", "run").strip() == "it ran"


def test_a_read_only_cgroupfs_leaves_the_watchdog_and_says_so():
    told = layers("container")
    assert told["cgroup"]["state"] == "unavailable"
    assert "mounted read-only" in told["cgroup"]["cause"]
    assert told["memory"]["state"] == "partial"
    assert "watchdog" in told["memory"]["mechanism"]
    for name in ("user", "network", "process", "filesystem", "privileges"):
        assert told[name]["state"] == "enforced", told[name]
    assert on("container", "run").strip() == "it ran"


def test_root_without_cap_sys_admin_becomes_nobody_in_a_user_namespace():
    told = layers("demoted")
    for name in ("user", "network", "process", "filesystem", "privileges"):
        assert told[name]["state"] == "enforced", told[name]
    assert "uid 65534 inside and out" in told["user"]["mechanism"]
    assert on("demoted", "run").strip() == "it ran"


def test_a_container_with_a_seccomp_filter_fails_closed():
    assert on("container+seccomp", "run").startswith('["network", "process", "filesystem"]')
