"""Why a layer was refused on this host, and how to mend it, in words for the person who runs it.

Each cause is named only where its evidence is there; otherwise the words say what was refused and
that this page does not know why. First match wins: the rules stand in the order from the most
specific to the most general. The facts are on the man pages and in the documentation of each
product; docs/hosts.md lists what was measured.
"""

from __future__ import annotations

import errno

from sandbox import causes_cgroup, causes_namespaces
from sandbox.causes_namespaces import (
    Explanation,
    Rule,
    closed_folder,
    container_seccomp,
    errno_name,
    exhausted,
    foreign_seccomp,
    old_kernel,
    unit,
)
from sandbox.host import Host


def explain(layer: str, step: str, number: int, host: Host | None = None) -> Explanation:
    """(cause, remedy) for ``layer``, whose ``step`` the kernel refused with errno ``number``.

    ``step`` names the call as the kernel's manual does ("unshare(CLONE_NEWUSER)", "mount_setattr",
    "uid_map", …). The evidence is gathered now unless ``host`` is given.
    """
    host = Host.gather() if host is None else host
    if number == 0:
        return _observed(step, host)
    for rule in _RULES.get(layer, ()):
        found = rule(step, number, host)
        if found is not None:
            return found
    return _unknown(step, number, host)


def _unknown(step: str, number: int, host: Host) -> Explanation:
    seen = [
        f"a {host.container}" + ("" if "container" in host.container else " container")
        if host.container
        else "",
        "a seccomp filter" if host.seccomp == 2 else "",
        f"AppArmor profile {host.apparmor}" if host.apparmor not in ("", "unconfined") else "",
        f"SELinux label {host.selinux}" if host.selinux else "",
        f"systemd unit {host.unit}" if host.unit else "",
    ]
    found = ", ".join(word for word in seen if word)
    return (
        f"the kernel refused {step} ({errno_name(number)}), and nothing on this host says why"
        + (f"; seen here: {found}" if found else ""),
        "look at the kernel's log (dmesg, journalctl -k) for a denial, and see docs/hosts.md",
    )


def _observed(step: str, host: Host) -> Explanation:
    """No call was refused: ``step`` says in words what was found instead."""
    if step.startswith("Landlock ABI"):
        running = ".".join(str(part) for part in host.kernel)
        return f"the kernel is old ({running}): {step}", "run Linux 6.12 or newer"
    if step.startswith("uid is"):
        return f"the worker could not become nobody: its {step}", "mend the layer user first"
    return step, ""


def _landlock(step: str, number: int, host: Host) -> Explanation | None:
    if host.gvisor:
        return "this is gVisor, which has no Landlock", "none is needed where gVisor is trusted"
    if host.container and host.seccomp == 2 and number == errno.EPERM:
        return (
            "the container's seccomp profile refuses the Landlock calls",
            "a newer container runtime (Docker 23, containerd 1.7), whose profile allows them",
        )
    if (0, 0) < host.kernel < (5, 13):
        return (
            f"the kernel ({host.kernel[0]}.{host.kernel[1]}) is older than Landlock (5.13)",
            "run Linux 6.12 or newer, where Landlock also covers TCP and signals",
        )
    if number == errno.ENOSYS:
        return (
            "the kernel was built without Landlock (CONFIG_SECURITY_LANDLOCK)",
            "run a kernel that has it" + (": wsl --update" if host.wsl else ""),
        )
    if host.lsm is not None and "landlock" not in host.lsm:
        return (
            "Landlock is not switched on at boot: /sys/kernel/security/lsm does not list it",
            f"add lsm=landlock,{','.join(host.lsm)} to the kernel's command line "
            "(GRUB_CMDLINE_LINUX, update-grub) and reboot",
        )
    if number == errno.EOPNOTSUPP:
        return (
            "Landlock is in the kernel but not switched on at boot",
            "add landlock to the list lsm= on the kernel's command line and reboot",
        )
    return None


def _privileges(step: str, number: int, host: Host) -> Explanation | None:
    if "MDWE" in step and number == errno.EINVAL:
        return (
            "the kernel cannot refuse writable and executable memory (PR_SET_MDWE: Linux 6.3)",
            "run Linux 6.3 or newer",
        )
    return None


_RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("user", "network", "process", "filesystem"), causes_namespaces.RULES),
    **dict.fromkeys(("cgroup", "memory"), causes_cgroup.RULES),
    "landlock": (closed_folder, _landlock),
    "privileges": (_privileges, container_seccomp, unit, foreign_seccomp, old_kernel),
    "rlimits": (exhausted, foreign_seccomp),
    "descriptors": (exhausted, foreign_seccomp),
}
