"""Why no cgroup can be had for a worker: the layers cgroup and memory.

Each rule answers only where its evidence is there, and None otherwise.
"""

from __future__ import annotations

import errno

from sandbox.causes_namespaces import REFUSED, Explanation, Rule, exhausted, gvisor
from sandbox.host import Host


def _read_only_cgroupfs(step: str, number: int, host: Host) -> Explanation | None:
    mounts = [point for point, read_only in host.cgroup_mounts if read_only]
    if number != errno.EROFS and not (number in REFUSED and mounts):
        return None
    where = mounts[0] if mounts else "/sys/fs/cgroup"
    remedy = {
        "docker": "docker run --cgroupns=private --security-opt writable-cgroups=true ... "
        "(Docker 28; before, --privileged)",
        "podman": "podman run --security-opt unmask=/sys/fs/cgroup ...",
        "kubernetes": "CRI-O: annotation io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw; "
        "containerd 2.1: cgroup_writable = true for the runtime; GKE: writableCgroups",
        "lxc": "lxc config set <container> security.nesting true",
    }.get(host.container, "mount -o remount,rw " + where)
    kind = f" (usual in a {host.container} container)" if host.container else ""
    return f"the cgroup file system {where} is mounted read-only{kind}", remedy


def _not_delegated(step: str, number: int, host: Host) -> Explanation | None:
    if number not in REFUSED:
        return None
    if host.container:
        return (
            f"this user ({host.uid}) may not write to the container's cgroup",
            "run the program as root in the container, or chown /sys/fs/cgroup, its cgroup.procs "
            "and its cgroup.subtree_control to the user in the entry point",
        )
    if host.unit and not host.user_service:
        return (
            f"the cgroup of the systemd unit {host.unit} is not delegated to this program",
            f"systemctl edit {host.unit}, add [Service] Delegate=yes and DelegateSubgroup=main",
        )
    return (
        f"this program's own cgroup is not delegated to its user ({host.uid})",
        "systemd-run --user --scope -p Delegate=yes -- python your_program.py",
    )


def _busy_cgroup(step: str, number: int, host: Host) -> Explanation | None:
    if number != errno.EBUSY:
        return None
    return (
        "other processes live in this program's own cgroup, so it can have no limited subgroups",
        "systemd-run --user --scope -p Delegate=yes -- python your_program.py",
    )


def _cgroup_limits(step: str, number: int, host: Host) -> Explanation | None:
    if number != errno.EAGAIN:
        return None
    return (
        "no more cgroups may be made here (cgroup.max.descendants or cgroup.max.depth)",
        "raise them in a group above, or run fewer workers at once",
    )


def _wsl_cgroup(step: str, number: int, host: Host) -> Explanation | None:
    if host.wsl != 2 or number not in (errno.ENOENT, errno.EACCES, errno.EPERM):
        return None
    return (
        "WSL 2 hands this program no cgroup of its own",
        "in /etc/wsl.conf: [boot] systemd=true; in .wslconfig: [wsl2] "
        "kernelCommandLine=cgroup_no_v1=all; then wsl --shutdown, and start the program with "
        "systemd-run --user --scope -p Delegate=yes",
    )


def _not_mounted(step: str, number: int, host: Host) -> Explanation | None:
    if number != errno.ENOENT or host.cgroup_mounts:
        return None
    return (
        "no cgroup file system is mounted here",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup, or let the container have its cgroup namespace "
        "(docker run --cgroupns=private)",
    )


def _not_shown(step: str, number: int, host: Host) -> Explanation | None:
    if number != errno.ENOENT:
        return None
    return (
        f"the cgroup file system {host.cgroup_mounts[0][0]} does not show this program's own group",
        "mount it in this program's own cgroup and mount namespace (docker run --cgroupns=private)",
    )


RULES: tuple[Rule, ...] = (
    _read_only_cgroupfs,
    gvisor,
    _wsl_cgroup,
    _not_delegated,
    _busy_cgroup,
    _cgroup_limits,
    exhausted,
    _not_mounted,
    _not_shown,
)
