"""Each cause is told apart by its evidence: the files of every kind of host, recorded, and what is
said of them. And `probe` tells of this host what a worker of it really gets."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import DEFAULT_REQUIRED, LAYERS, Sandbox, State, probe
from sandbox.causes import explain
from sandbox.host import Host

UNSHARE = "unshare(CLONE_NEWUSER)"
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}

ROOT_MOUNT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
CONTAINER_MOUNTS = (
    "700 600 0:70 / / rw,relatime - overlay overlay rw\n"
    "701 700 0:71 / /proc rw,nosuid,nodev,noexec - proc proc rw\n"
    "702 701 0:71 /sys /proc/sys ro,nosuid - proc proc rw\n"
    "703 701 0:72 / /proc/kcore rw,nosuid - tmpfs tmpfs rw\n"
    "704 701 0:72 / /proc/keys rw,nosuid - tmpfs tmpfs rw\n"
    "705 700 254:1 /x/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n"
    "706 700 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
)
CGROUP_MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
DEBIAN = {
    "proc/version": "Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)\n",
    "proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\nSeccomp:\t0\n",
    "proc/self/mountinfo": ROOT_MOUNT + CGROUP_MOUNT,
    "proc/self/uid_map": "         0          0 4294967295\n",
    "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
    "proc/sys/user/max_user_namespaces": "15000\n",
}
ROOT_STATUS = {
    "proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n",
}
CONTAINER = {
    **DEBIAN,
    "proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\nSeccomp:\t2\n",
    "proc/self/mountinfo": CONTAINER_MOUNTS,
    "proc/self/cgroup": "0::/\n",
    "proc/self/attr/current": "unconfined\n",
}
DOCKER = {**CONTAINER, ".dockerenv": ""}
PODMAN = {**CONTAINER, "run/.containerenv": 'engine="podman-4.9"\n'}
SERVICE = {
    **DEBIAN,
    "proc/self/status": "Uid:\t997\t997\t997\t997\nCapEff:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n",
    "proc/self/cgroup": "0::/system.slice/models.service\n",
}

Recorded = Callable[..., Host]


@pytest.fixture
def host(tmp_path: Path) -> Recorded:
    """A Host from recorded files: path below / → text."""

    def record(
        files: dict[str, str], changes: dict[str, str] | None = None, **environ: str
    ) -> Host:
        for name, text in {**files, **(changes or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Host.gather(str(tmp_path), environ)

    return record


def test_dockers_seccomp_profile(host):
    cause, remedy = explain("user", UNSHARE, errno.EPERM, host(DOCKER))
    assert cause == f"Docker's default seccomp profile refuses {UNSHARE}"
    assert "docker run --security-opt seccomp=unconfined" in remedy


def test_podmans_seccomp_profile(host):
    cause, remedy = explain("user", UNSHARE, errno.EPERM, host(PODMAN))
    assert "seccomp profile refuses" in cause
    assert remedy.startswith("podman run --security-opt seccomp=")


def test_kubernetes_seccomp_profile(host):
    cause, remedy = explain("user", UNSHARE, errno.EPERM, host(CONTAINER, **KUBERNETES))
    assert "RuntimeDefault" in cause
    assert "seccompProfile: {type: Unconfined}" in remedy
    assert "hostUsers: false" in remedy


def test_kubernetes_with_a_user_namespace_of_its_own(host):
    seen = host(CONTAINER, {"proc/self/uid_map": "0 1966080 65536\n"}, **KUBERNETES)
    assert seen.own_user_namespace
    assert seen.uid_is_mapped
    cause, _ = explain("user", UNSHARE, errno.EPERM, seen)
    assert "RuntimeDefault" in cause


def test_a_marker_file_in_a_virtual_machine_is_no_container(host):
    seen = host(DEBIAN, {".dockerenv": ""})
    assert seen.container == ""


def test_dockers_apparmor_profile(host):
    seen = host(DOCKER, {"proc/self/attr/current": "docker-default (enforce)\n"})
    cause, remedy = explain("filesystem", "mount(/, MS_PRIVATE)", errno.EACCES, seen)
    assert cause == "the AppArmor profile docker-default refuses mount(/, MS_PRIVATE)"
    assert "docker run --security-opt apparmor=unconfined" in remedy


def test_dockers_apparmor_profile_on_ubuntu(host):
    """Without it the container would run into Ubuntu's own restriction: both have to go."""
    seen = host(
        DOCKER,
        {
            "proc/self/attr/current": "docker-default (enforce)\n",
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        },
    )
    _, remedy = explain("filesystem", "mount(/, MS_PRIVATE)", errno.EACCES, seen)
    assert "apparmor=unconfined" in remedy
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in remedy


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        ("user", UNSHARE),
        ("user", "write(/proc/self/uid_map)"),
        ("filesystem", "mount(/, MS_PRIVATE)"),
        ("network", "unshare(CLONE_NEWNET)"),
    ],
)
@pytest.mark.parametrize("label", ["unconfined", "unprivileged_userns (enforce)"])
def test_ubuntus_restriction(host, layer, step, label):
    seen = host(
        DEBIAN,
        {
            "proc/self/attr/current": f"{label}\n",
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        },
    )
    for number in (errno.EPERM, errno.EACCES):
        cause, remedy = explain(layer, step, number, seen)
        assert "Ubuntu 23.10" in cause
        assert "/etc/apparmor.d/" in remedy
        assert "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" in remedy


def test_ubuntus_restriction_is_not_blamed_where_it_is_off(host):
    seen = host(DEBIAN, {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0\n"})
    cause, _ = explain("user", UNSHARE, errno.EPERM, seen)
    assert "AppArmor" not in cause


def test_debians_switch(host):
    seen = host(DEBIAN, {"proc/sys/kernel/unprivileged_userns_clone": "0\n"})
    cause, remedy = explain("user", UNSHARE, errno.EPERM, seen)
    assert "kernel.unprivileged_userns_clone is 0" in cause
    assert "sysctl -w kernel.unprivileged_userns_clone=1" in remedy


@pytest.mark.parametrize(
    ("layer", "step", "number"),
    [
        ("user", UNSHARE, errno.ENOSPC),
        ("network", "unshare(CLONE_NEWNET)", errno.EPERM),
        ("filesystem", "unshare(CLONE_NEWNS)", errno.EPERM),
    ],
)
def test_no_user_namespaces_at_all(host, layer, step, number):
    seen = host(DEBIAN, {"proc/sys/user/max_user_namespaces": "0\n"})
    cause, remedy = explain(layer, step, number, seen)
    assert "user.max_user_namespaces is 0" in cause
    assert "sysctl -w user.max_user_namespaces=15000" in remedy
    assert "run as root" in remedy


def test_root_is_not_told_to_become_root(host):
    seen = host(DEBIAN, {**ROOT_STATUS, "proc/sys/user/max_user_namespaces": "0\n"})
    cause, remedy = explain("user", UNSHARE, errno.ENOSPC, seen)
    assert "user.max_user_namespaces is 0" in cause
    assert "root" not in remedy


def test_too_many_user_namespaces(host):
    cause, _ = explain("user", UNSHARE, errno.ENOSPC, host(DEBIAN))
    assert "too many namespaces" in cause


def test_what_follows_from_a_missing_user_namespace(host):
    cause, remedy = explain("network", "unshare(CLONE_NEWNET)", errno.EPERM, host(DEBIAN))
    assert "needs the user namespace that could not be had" in cause
    assert "layer user" in remedy


@pytest.mark.parametrize(
    "version",
    [
        "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n",
        "Linux version 4.19.0-gvisor #1 SMP Sun Jan 10 15:06:54 PST 2016\n",
    ],
)
def test_gvisor(host, version):
    seen = host(CONTAINER, {"proc/version": version})
    for layer, step in (
        ("filesystem", "open_tree(/lib)"),
        ("landlock", "landlock"),
        ("cgroup", "mkdir"),
    ):
        cause, _ = explain(layer, step, errno.ENOSYS, seen)
        assert "gVisor" in cause


def test_an_old_ubuntu_kernel_is_not_gvisor(host):
    assert not host(DEBIAN, {"proc/version": "Linux version 4.4.0-210-generic\n"}).gvisor


def test_a_systemd_unit_with_restricted_namespaces(host):
    cause, remedy = explain("user", UNSHARE, errno.EPERM, host(SERVICE, INVOCATION_ID="f0"))
    assert "systemd unit models.service" in cause
    assert "RestrictNamespaces=" in cause
    assert "systemctl edit models.service" in remedy


def test_a_shell_below_a_service_is_not_that_service(host):
    assert host(SERVICE).unit == ""


def test_a_seccomp_filter_of_somebody_else(host):
    seen = host(DEBIAN, {"proc/self/status": "Uid:\t1000\nCapEff:\t0\nSeccomp:\t2\n"})
    cause, _ = explain("user", UNSHARE, errno.EPERM, seen)
    assert "seccomp filter" in cause
    assert "Docker" not in cause


def test_a_chroot(host):
    seen = host(DEBIAN, {"proc/self/mountinfo": "40 27 0:22 / /proc rw - proc proc rw\n"})
    cause, _ = explain("user", UNSHARE, errno.EPERM, seen)
    assert "chroot" in cause


def test_a_user_that_the_container_does_not_map(host):
    seen = host(
        DEBIAN,
        {
            "proc/self/status": "Uid:\t70000\nCapEff:\t0\nSeccomp:\t0\n",
            "proc/self/uid_map": "0 100000 65536\n",
        },
    )
    cause, _ = explain("user", UNSHARE, errno.EPERM, seen)
    assert "70000 has no mapping" in cause


def test_selinux(host):
    label = "system_u:system_r:httpd_t:s0\0"
    seen = host(DEBIAN, {"proc/self/attr/current": label, "sys/fs/selinux/enforce": "1"})
    cause, remedy = explain("user", UNSHARE, errno.EACCES, seen)
    assert "httpd_t" in cause
    assert "ausearch" in remedy


def test_wsl_1(host):
    seen = host(DEBIAN, {"proc/version": "Linux version 4.4.0-19041-Microsoft (gcc 5.4.0)\n"})
    cause, remedy = explain("user", UNSHARE, errno.EINVAL, seen)
    assert "WSL 1" in cause
    assert "wsl --set-version" in remedy


def test_wsl_2(host):
    seen = host(
        DEBIAN, {"proc/version": "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f)\n"}
    )
    cause, remedy = explain("cgroup", "making a cgroup", errno.EACCES, seen)
    assert "WSL 2" in cause
    assert "systemd=true" in remedy
    _, remedy = explain("landlock", "landlock_create_ruleset", errno.ENOSYS, seen)
    assert "wsl --update" in remedy


def test_an_old_kernel(host):
    seen = host(DEBIAN, {"proc/version": "Linux version 5.10.0-8-amd64\n"})
    cause, _ = explain("filesystem", "mount_setattr", errno.ENOSYS, seen)
    assert "5.10" in cause
    assert "mount_setattr" in cause


def test_a_kernel_without_namespaces(host):
    cause, _ = explain("user", UNSHARE, errno.EINVAL, host(DEBIAN))
    assert "CONFIG_USER_NS" in cause


def test_the_initramfs_as_root(host):
    seen = host(DEBIAN, {"proc/self/mountinfo": "1 1 0:2 / / rw - rootfs rootfs rw\n"})
    cause, _ = explain("filesystem", "pivot_root", errno.EINVAL, seen)
    assert "initramfs" in cause


def test_a_python_that_nobody_may_read(host, tmp_path):
    (tmp_path / "closed" / "python").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    closed = next(
        folder
        for folder in (*reversed((tmp_path / "closed").parents), tmp_path / "closed")
        if not folder.stat().st_mode & 0o001
    )
    step = f"open_tree({tmp_path}/closed/python)"
    for layer in ("filesystem", "landlock"):
        cause, remedy = explain(layer, step, errno.EACCES, host(CONTAINER))
        assert cause.startswith(f"the worker's user may not enter {closed},")
        assert f"chmod o+x {closed}" in remedy


def test_a_read_only_proc_sys(host):
    step = "write(/proc/sys/user/max_user_namespaces)"
    cause, remedy = explain("user", step, errno.EROFS, host(DOCKER))
    assert "/proc/sys is mounted read-only" in cause
    assert "systempaths=unconfined" in remedy


def test_a_masked_proc(host):
    cause, remedy = explain("filesystem", "fsmount(proc)", errno.EPERM, host(DOCKER))
    assert "/proc is masked" in cause
    assert "systempaths=unconfined" in remedy


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.EAGAIN, "processes"), (errno.ENOMEM, "memory"), (errno.EMFILE, "open files")],
)
def test_a_host_that_has_run_out(host, number, word):
    cause, _ = explain("process", "fork", number, host(DEBIAN))
    assert word in cause


def test_what_nothing_explains_is_said_to_be_unexplained(host):
    cause, _ = explain("filesystem", "move_mount", errno.ELOOP, host(DEBIAN))
    assert "nothing on this host says why" in cause
    assert "ELOOP" in cause


# -- cgroup -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "environ", "remedy"),
    [
        (DOCKER, {}, "writable-cgroups=true"),
        (PODMAN, {}, "unmask=/sys/fs/cgroup"),
        (CONTAINER, KUBERNETES, "cgroup_writable = true"),
    ],
    ids=["docker", "podman", "kubernetes"],
)
def test_a_read_only_cgroupfs(host, files, environ, remedy):
    cause, words = explain("cgroup", "making a cgroup", errno.EROFS, host(files, **environ))
    assert "/sys/fs/cgroup is mounted read-only" in cause
    assert remedy in words


def test_no_delegation_to_a_login_session(host):
    cause, remedy = explain("cgroup", "making a cgroup", errno.EACCES, host(DEBIAN))
    assert "not delegated to its user (1000)" in cause
    assert remedy.startswith("systemd-run --user --scope -p Delegate=yes")


def test_no_delegation_to_a_service(host):
    seen = host(SERVICE, INVOCATION_ID="f0")
    cause, remedy = explain("memory", "making a cgroup", errno.EACCES, seen)
    assert "models.service is not delegated" in cause
    assert "Delegate=yes" in remedy


def test_a_user_in_a_container_with_a_writable_cgroupfs(host):
    mounts = CONTAINER_MOUNTS.replace("/sys/fs/cgroup ro", "/sys/fs/cgroup rw")
    seen = host(DOCKER, {"proc/self/mountinfo": mounts, "proc/self/status": "Uid:\t1000\n"})
    cause, remedy = explain("cgroup", "making a cgroup", errno.EACCES, seen)
    assert "this user (1000)" in cause
    assert "chown" in remedy


def test_others_in_the_own_cgroup(host):
    cause, remedy = explain("cgroup", "making a cgroup", errno.EBUSY, host(DEBIAN))
    assert "other processes live in" in cause
    assert "systemd-run" in remedy


def test_too_many_cgroups(host):
    cause, _ = explain("cgroup", "making a cgroup", errno.EAGAIN, host(DEBIAN))
    assert "cgroup.max.descendants" in cause


def test_no_cgroupfs(host):
    seen = host(DEBIAN, {"proc/self/mountinfo": ROOT_MOUNT})
    cause, _ = explain("cgroup", "making a cgroup", errno.ENOENT, seen)
    assert "no cgroup file system is mounted" in cause


def test_an_own_cgroup_that_is_not_shown(host):
    cause, _ = explain("cgroup", "making a cgroup", errno.ENOENT, host(DEBIAN))
    assert "does not show this program's own group" in cause


# -- Landlock, privileges ---------------------------------------------------------------------


def test_landlock_off_at_boot(host):
    seen = host(DEBIAN, {"sys/kernel/security/lsm": "capability,yama,apparmor"})
    cause, remedy = explain("landlock", "landlock_create_ruleset", errno.EOPNOTSUPP, seen)
    assert "not switched on at boot" in cause
    assert "lsm=landlock,capability,yama,apparmor" in remedy


def test_landlock_off_at_boot_where_securityfs_is_not_mounted(host):
    cause, remedy = explain("landlock", "landlock_create_ruleset", errno.EOPNOTSUPP, host(DEBIAN))
    assert "not switched on at boot" in cause
    assert "lsm=" in remedy


def test_a_kernel_older_than_landlock(host):
    seen = host(DEBIAN, {"proc/version": "Linux version 5.10.0-8-amd64\n"})
    for number in (errno.ENOSYS, errno.EOPNOTSUPP):
        cause, _ = explain("landlock", "landlock_create_ruleset", number, seen)
        assert cause == "the kernel (5.10) is older than Landlock (5.13)"


def test_a_kernel_built_without_landlock(host):
    cause, _ = explain("landlock", "landlock_create_ruleset", errno.ENOSYS, host(DEBIAN))
    assert "CONFIG_SECURITY_LANDLOCK" in cause


def test_an_old_landlock(host):
    cause, remedy = explain("landlock", "Landlock ABI 2 has no TCP rules", 0, host(DEBIAN))
    assert cause == "the kernel is old (6.1): Landlock ABI 2 has no TCP rules"
    assert "6.12" in remedy


def test_an_old_container_runtimes_profile_refuses_landlock(host):
    cause, remedy = explain("landlock", "landlock_create_ruleset", errno.EPERM, host(DOCKER))
    assert "seccomp profile refuses the Landlock calls" in cause
    assert "Docker 23" in remedy


def test_a_kernel_without_mdwe(host):
    cause, _ = explain("privileges", "prctl(PR_SET_MDWE)", errno.EINVAL, host(DEBIAN))
    assert "Linux 6.3" in cause


# -- the words --------------------------------------------------------------------------------


def test_no_evidence_at_all_is_no_error(tmp_path):
    seen = Host.gather(str(tmp_path), {})
    for layer in LAYERS:
        cause, _ = explain(layer, "some call", errno.EPERM, seen)
        assert cause


@pytest.mark.parametrize("files", [DEBIAN, DOCKER, PODMAN, SERVICE])
def test_every_explanation_is_one_line_of_plain_text(host, files):
    seen = host(files, INVOCATION_ID="f0")
    for layer in LAYERS:
        for number in sorted(errno.errorcode):
            for words in explain(layer, UNSHARE, number, seen):
                assert words.isprintable()
                assert not re.search(r"  |^\s|\s$", words)


# -- this host --------------------------------------------------------------------------------


@pytest.mark.isolation
def test_probe_tells_what_a_worker_of_this_host_gets():
    told = probe()
    assert [layer.name for layer in told.layers] == list(LAYERS)
    with Sandbox() as sandbox:
        got = sandbox.isolation()
    assert told == got
    for layer in told.layers:
        if layer.state is State.ENFORCED:
            assert layer.mechanism
        else:
            assert layer.cause


def test_a_lowered_layer_is_told_with_its_cause():
    with Sandbox(_disable={"cgroup", "landlock"}) as sandbox:
        got = sandbox.isolation()
    assert got["cgroup"].state is State.UNAVAILABLE
    assert got["landlock"].state is State.UNAVAILABLE
    assert got["memory"].state is State.PARTIAL
    assert "watchdog" in got["memory"].mechanism


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isoload", "doctor", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_doctor_has_one_line_a_layer():
    done = doctor()
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(LAYERS)]] == list(LAYERS)
    assert done.returncode in (0, 3)


def test_doctors_json_is_alone_on_stdout_and_its_status_is_the_verdict():
    done = doctor("--json")
    report = json.loads(done.stdout)
    assert list(report["layers"]) == list(LAYERS)
    assert report["required"] == sorted(DEFAULT_REQUIRED)
    assert done.returncode == (3 if report["missing"] else 0)
