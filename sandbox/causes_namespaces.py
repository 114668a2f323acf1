"""Why a namespace or a mount was refused: the layers user, network, process and filesystem.

Each rule answers only where its evidence is there, and None otherwise. ``RULES`` stands in order,
the most specific first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from sandbox.host import Host

Explanation = tuple[str, str]
Rule = Callable[[str, int, Host], "Explanation | None"]
REFUSED = frozenset({errno.EPERM, errno.EACCES})


def errno_name(number: int) -> str:
    return f"{errno.errorcode.get(number, number)}, {os.strerror(number)}"


def gvisor(step: str, number: int, host: Host) -> Explanation | None:
    if not host.gvisor:
        return None
    return (
        f"this is gVisor, whose kernel does not offer {step} as isolation needs it",
        "run it under the runtime runc instead of runsc (Kubernetes: without runtimeClassName "
        "gvisor), or rely on gVisor alone and give this layer up by name in Policy(require=...)",
    )


def _wsl1(step: str, number: int, host: Host) -> Explanation | None:
    if host.wsl != 1:
        return None
    return (
        "this is WSL 1, which has no Linux kernel and so no namespaces",
        "convert the distribution to WSL 2: wsl --set-version <distribution> 2",
    )


def _no_user_namespaces(step: str, number: int, host: Host) -> Explanation | None:
    switched_off = host.max_user_namespaces == 0
    if switched_off and (number == errno.ENOSPC or (number in REFUSED and not host.privileged)):
        return (
            "user namespaces are switched off: user.max_user_namespaces is 0",
            "sudo sysctl -w user.max_user_namespaces=15000 (and the same line in /etc/sysctl.d/)"
            + (", on the container's host" if host.container else "")
            + ("" if host.privileged else "; or run as root, which needs no user namespace"),
        )
    if number in (errno.ENOSPC, errno.EUSERS):
        return (
            f"too many namespaces: {step} went over a limit in /proc/sys/user, or they are nested "
            "32 deep",
            "raise user.max_user_namespaces and its siblings with sysctl; do not nest sandboxes",
        )
    return None


def _userns_clone(step: str, number: int, host: Host) -> Explanation | None:
    if number == errno.EPERM and host.unprivileged_userns_clone == 0 and not host.privileged:
        return (
            "unprivileged user namespaces are switched off: kernel.unprivileged_userns_clone is 0",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1 (and the same line in "
            "/etc/sysctl.d/)",
        )
    return None


def container_seccomp(step: str, number: int, host: Host) -> Explanation | None:
    if number not in (errno.EPERM, errno.ENOSYS) or host.seccomp != 2 or not host.container:
        return None
    if host.container == "kubernetes":
        return (
            f"the pod's seccomp profile (RuntimeDefault) refuses {step}",
            "in the container's securityContext set seccompProfile: {type: Unconfined} and, where "
            "nodes have AppArmor, appArmorProfile: {type: Unconfined}"
            + (
                ""
                if host.own_user_namespace
                else "; with hostUsers: false in the pod's spec, its "
                "root is then nobody on the node"
            ),
        )
    if host.container == "lxc":
        return (
            f"the LXC container's seccomp profile refuses {step}",
            "lxc config set <container> security.nesting true (Proxmox: features: nesting=1)",
        )
    tool = "podman" if host.container == "podman" else "docker"
    kind = "Docker's default" if host.container == "docker" else "the container's"
    return (
        f"{kind} seccomp profile refuses {step}",
        f"{tool} run --security-opt seccomp=unconfined --security-opt apparmor=unconfined ..., "
        "or a copy of the default profile that also allows unshare, clone, mount, umount2, "
        "pivot_root and the new mount calls",
    )


def unit(step: str, number: int, host: Host) -> Explanation | None:
    if number not in (errno.EPERM, errno.ENOSYS, errno.EACCES) or host.seccomp != 2:
        return None
    if not host.unit:
        return None
    return (
        f"the systemd unit {host.unit} runs this program under a seccomp filter "
        f"(RestrictNamespaces= or SystemCallFilter=), which refuses {step}",
        f"systemctl {'--user ' if host.user_service else ''}edit {host.unit}, add [Service] "
        "RestrictNamespaces=no and SystemCallFilter=@mount @sandbox where a filter is set",
    )


def foreign_seccomp(step: str, number: int, host: Host) -> Explanation | None:
    if number in (errno.EPERM, errno.ENOSYS) and host.seccomp == 2:
        return (
            f"whoever started this program put a seccomp filter on it (Seccomp: 2 in "
            f"/proc/self/status), and {step} was refused",
            "start the program outside that sandbox, or have the filter allow unshare, mount, "
            "pivot_root and the new mount calls",
        )
    return None


def _ubuntu(step: str, number: int, host: Host) -> Explanation | None:
    restricted = host.apparmor_restrict_userns == 1 and not host.privileged
    confined = host.apparmor not in ("", "unconfined") and "unprivileged_userns" not in (
        host.apparmor
    )
    if number not in REFUSED or not restricted or confined:
        return None
    return (
        "AppArmor restricts unprivileged user namespaces (Ubuntu 23.10 and later: "
        "kernel.apparmor_restrict_unprivileged_userns is 1)",
        "give this Python a profile that allows them: put 'abi <abi/4.0>, include "
        "<tunables/global> profile isoload-python /path/to/python3 flags=(unconfined) { userns, }' "
        "into /etc/apparmor.d/isoload-python and run sudo apparmor_parser -r on it; or, for all "
        "programs, sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    )


def _apparmor(step: str, number: int, host: Host) -> Explanation | None:
    if number not in REFUSED or host.apparmor in ("", "unconfined"):
        return None
    cause = f"the AppArmor profile {host.apparmor} refuses {step}"
    if host.container == "kubernetes":
        return cause, "in the container's securityContext: appArmorProfile: {type: Unconfined}"
    if host.container == "lxc":
        return cause, "lxc config set <container> security.nesting true"
    if host.container:
        tool = "podman" if host.container == "podman" else "docker"
        also = (
            ", and on the host sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            if host.apparmor_restrict_userns == 1
            else ""
        )
        return cause, f"{tool} run --security-opt apparmor=unconfined ...{also}"
    return cause, f"allow userns, mount and pivot_root in the profile {host.apparmor}"


def closed_folder(step: str, number: int, host: Host) -> Explanation | None:
    """A root caller without CAP_SYS_ADMIN becomes nobody first, and then needs others' rights."""
    call, _, path = step.removesuffix(")").partition("(")
    opened = call in ("open", "open_tree", "landlock_add_rule") and os.path.isabs(path)
    if number != errno.EACCES or host.privileged or not opened:
        return None
    for folder in (*reversed(Path(path).parents), Path(path)):
        try:
            closed = not folder.stat().st_mode & stat.S_IXOTH
        except OSError:
            closed = True
        if closed:
            return (
                f"the worker's user may not enter {folder}, and needs {path}",
                f"install Python and its packages where every user may read them, or chmod o+x "
                f"{folder}; root with CAP_SYS_ADMIN needs neither",
            )
    return None


def _selinux(step: str, number: int, host: Host) -> Explanation | None:
    if number != errno.EACCES or not host.selinux or not host.selinux_enforcing:
        return None
    return (
        f"SELinux is enforcing and this program's label {host.selinux} may not do {step}",
        "ausearch -m avc -ts recent shows the rule; in a container, --security-opt label=disable",
    )


def _chroot(step: str, number: int, host: Host) -> Explanation | None:
    if number == errno.EPERM and host.chrooted:
        return (
            "this program runs in a chroot, where the kernel gives no user namespace",
            "use a container with its own mount namespace (pivot_root) instead of chroot, or "
            "mount the folder on itself and pivot into it",
        )
    return None


def _unmapped(step: str, number: int, host: Host) -> Explanation | None:
    if number == errno.EPERM and host.uid_map and not host.uid_is_mapped:
        return (
            f"the user id {host.uid} has no mapping in this container's user namespace",
            "start the container with a user that its uid map holds",
        )
    return None


def old_kernel(step: str, number: int, host: Host) -> Explanation | None:
    if number == errno.ENOSYS:
        running = ".".join(str(part) for part in host.kernel)
        return (
            f"the kernel ({running}) does not have {step}",
            "Linux 5.12 or newer is needed for mounts (mount_setattr), 5.13 for Landlock",
        )
    if number == errno.EINVAL and step.startswith(("unshare", "clone")):
        return (
            f"this kernel was built without what {step} asks for (CONFIG_USER_NS, CONFIG_PID_NS, "
            "CONFIG_NET_NS …)",
            "run a kernel of a distribution, which has them",
        )
    return None


def _initramfs(step: str, number: int, host: Host) -> Explanation | None:
    if number == errno.EINVAL and "pivot_root" in step and host.root_type in ("rootfs", "ramfs"):
        return (
            "the root file system is the initramfs, which pivot_root cannot leave",
            "boot into a real root file system (switch_root)",
        )
    return None


def _proc_sys(step: str, number: int, host: Host) -> Explanation | None:
    refused = number in (errno.EROFS, errno.EACCES, errno.ENOENT)
    if refused and "/proc/sys" in step and host.proc_sys_read_only:
        return (
            "/proc/sys is mounted read-only, as containers have it, so nested user namespaces "
            "cannot be switched off there",
            "docker run --security-opt systempaths=unconfined (Kubernetes: procMount: Unmasked "
            "with hostUsers: false)",
        )
    return None


def _masked_proc(step: str, number: int, host: Host) -> Explanation | None:
    if number == errno.EPERM and "mount" in step and "proc" in step and host.masked_proc:
        return (
            f"/proc is masked here ({', '.join(host.masked_proc[:3])} …), so the kernel lets "
            "nobody below mount a fresh one",
            "docker run --security-opt systempaths=unconfined (Kubernetes: procMount: Unmasked "
            "with hostUsers: false)",
        )
    return None


def exhausted(step: str, number: int, host: Host) -> Explanation | None:
    words = {
        errno.EAGAIN: ("no more processes are allowed", "raise ulimit -u, or the group's pids.max"),
        errno.ENOMEM: ("the host is out of memory", "free memory, or run fewer workers at once"),
        errno.EMFILE: ("this program has too many open files", "raise ulimit -n"),
        errno.ENFILE: ("the host has too many open files", "raise fs.file-max with sysctl"),
    }.get(number)
    return (f"{words[0]} ({step}: {errno_name(number)})", words[1]) if words else None


def _without_user_namespace(step: str, number: int, host: Host) -> Explanation | None:
    if number != errno.EPERM or host.privileged or "NEWUSER" in step:
        return None
    return (
        f"{step} needs the user namespace that could not be had, or CAP_SYS_ADMIN",
        "mend the layer user first, or run as root with CAP_SYS_ADMIN",
    )


RULES: tuple[Rule, ...] = (
    exhausted,
    gvisor,
    _wsl1,
    _no_user_namespaces,
    _userns_clone,
    _proc_sys,
    _masked_proc,
    closed_folder,
    _ubuntu,
    container_seccomp,
    unit,
    _apparmor,
    _chroot,
    _unmapped,
    foreign_seccomp,
    _selinux,
    old_kernel,
    _initramfs,
    _without_user_namespace,
)
