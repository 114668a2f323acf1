"""What is known about this host that decides why a layer cannot be had. Evidence, no judgement.

Everything is read from files below a root folder and from an environment, so that a test can feed
the recorded files of any kind of host. Nothing here is run, written or tried out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CAP_SYS_ADMIN = 21  # capabilities(7)
_GVISOR_BOOT = "#1 SMP Sun Jan 10 15:06:54 PST 2016"  # what runsc has always put in /proc/version


@dataclass(frozen=True)
class Host:
    """The evidence; an empty string or None where a file is not there."""

    version: str  # /proc/version
    seccomp: int  # Seccomp: of /proc/self/status: 0 off, 1 strict, 2 a filter
    no_new_privs: bool
    capabilities: int  # CapEff
    uid: int
    container: str  # "docker", "podman", "kubernetes", "lxc", "container", or "" for none
    unit: str  # the systemd unit that the process belongs to, if it is a service
    user_service: bool  # run by systemd --user
    wsl: int  # 1, 2, or 0
    max_user_namespaces: int | None
    unprivileged_userns_clone: int | None  # Debian's and older Ubuntu's kernels only
    apparmor_restrict_userns: int | None  # Ubuntu 23.10 and later
    apparmor: str  # the confining AppArmor profile, "unconfined", or ""
    selinux: str  # the SELinux label, or ""
    selinux_enforcing: bool
    lsm: tuple[str, ...] | None  # /sys/kernel/security/lsm; None where securityfs is not mounted
    uid_map: tuple[tuple[int, int, int], ...]
    chrooted: bool  # chroot(2) without a mount namespace; False also where nothing tells
    root_type: str  # file system of /
    cgroup_mounts: tuple[tuple[str, bool], ...]  # (mount point, read-only)
    masked_proc: tuple[str, ...]  # mounts over something below /proc
    proc_sys_read_only: bool

    @classmethod
    def gather(cls, root: str = "/", environ: Mapping[str, str] | None = None) -> Host:
        """Read the evidence below ``root``. Costs about a millisecond."""
        environ = os.environ if environ is None else environ
        files = _Files(root)
        status = dict(
            line.split(":", 1)
            for line in files.text("proc/self/status").splitlines()
            if ":" in line
        )
        mounts = _mounts(files.text("proc/self/mountinfo"))
        version = files.text("proc/version")
        groups = files.text("proc/self/cgroup")
        label = files.text("proc/self/attr/current").strip("\0\n")
        lsm = files.text("sys/kernel/security/lsm")
        unit = re.findall(r"/([^/\n]+\.service)(?:/|$)", groups, re.MULTILINE)
        root_types = [kind for point, kind, _ in mounts if point == "/"]
        return cls(
            version=version,
            seccomp=int(status.get("Seccomp", "0")),
            no_new_privs=status.get("NoNewPrivs", "0").strip() == "1",
            capabilities=int(status.get("CapEff", "0"), 16),
            uid=int(status.get("Uid", "-1").split()[0]),
            container=_container(files, environ, groups, mounts),
            unit=unit[-1] if unit and "INVOCATION_ID" in environ else "",
            user_service="/user@" in groups,
            wsl=_wsl(version),
            max_user_namespaces=files.number("proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone=files.number("proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restrict_userns=files.number(
                "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
            ),
            apparmor=label.split(" ")[0] if label.count(":") < 2 else "",
            selinux=label if label.count(":") >= 2 else "",
            selinux_enforcing=files.number("sys/fs/selinux/enforce") == 1,
            lsm=tuple(lsm.strip().split(",")) if lsm else None,
            uid_map=_uid_map(files.text("proc/self/uid_map")),
            chrooted=bool(mounts) and (not root_types or files.other_root_than_init()),
            root_type=root_types[-1] if root_types else "",
            cgroup_mounts=tuple(
                (point, "ro" in options) for point, kind, options in mounts if "cgroup" in kind
            ),
            masked_proc=tuple(point for point, _, _ in mounts if point.startswith("/proc/")),
            proc_sys_read_only=any(
                point == "/proc/sys" and "ro" in options for point, _, options in mounts
            ),
        )

    @property
    def gvisor(self) -> bool:
        return "gvisor" in self.version.lower() or _GVISOR_BOOT in self.version

    @property
    def kernel(self) -> tuple[int, int]:
        found = re.search(r"version (\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def privileged(self) -> bool:
        """CAP_SYS_ADMIN is effective: namespaces can be had without a user namespace."""
        return bool(self.capabilities >> CAP_SYS_ADMIN & 1)

    @property
    def own_user_namespace(self) -> bool:
        """Whether the process lives in a user namespace of a container or sandbox already."""
        return bool(self.uid_map) and self.uid_map != ((0, 0, 4294967295),)

    @property
    def uid_is_mapped(self) -> bool:
        return any(start <= self.uid < start + count for start, _, count in self.uid_map)


class _Files:
    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def text(self, name: str) -> str:
        try:
            return (self._root / name).read_text(errors="replace")
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        text = self.text(name).strip()
        return int(text) if text.isdigit() else None

    def other_root_than_init(self) -> bool:
        """In init's mount namespace, but not under its root: only root may see that."""
        init, own = self._root / "proc/1", self._root / "proc/self"
        try:
            same_mounts = os.readlink(init / "ns/mnt") == os.readlink(own / "ns/mnt")
            return same_mounts and not os.path.samefile(init / "root", own / "root")
        except OSError:
            return False

    def has(self, name: str) -> bool:
        return (self._root / name).exists()


def _mounts(text: str) -> list[tuple[str, str, frozenset[str]]]:
    """(mount point, file system type, options of mount and file system) for each mount."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(" "), right.split(" ")
        options = frozenset(words[5].split(",")) | frozenset(kind[2].split(","))
        found.append((words[4], kind[0], options))
    return found


def _container(
    files: _Files,
    environ: Mapping[str, str],
    groups: str,
    mounts: list[tuple[str, str, frozenset[str]]],
) -> str:
    if "KUBERNETES_SERVICE_HOST" in environ or "/kubepods" in groups:
        return "kubernetes"
    over = {point for point, _, _ in mounts}
    given_files = bool(over & {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})
    if (files.has(".dockerenv") and given_files) or re.search(r"/docker[/-]", groups):
        return "docker"  # the marker alone also lies in virtual machines made from an image
    if (files.has("run/.containerenv") and given_files) or "/libpod-" in groups:
        return "podman"
    init = files.text("proc/1/environ")
    named = environ.get("container", "") or "".join(re.findall(r"(?:^|\0)container=([^\0]+)", init))
    if named.startswith("lxc") or "/lxc" in groups:
        return "lxc"
    return "container" if named or {"/proc/kcore", "/proc/keys"} <= over else ""


def _wsl(version: str) -> int:
    """WSL 2 runs a real kernel, "…-microsoft-standard-WSL2"; WSL 1 imitates 4.4.0-…-Microsoft."""
    if "microsoft" not in version.lower():
        return 0
    return 1 if re.search(r"version 4\.4\.0-\d+-Microsoft", version) else 2


def _uid_map(text: str) -> tuple[tuple[int, int, int], ...]:
    rows = (tuple(int(word) for word in line.split()) for line in text.splitlines())
    return tuple((row[0], row[1], row[2]) for row in rows if len(row) == 3)
