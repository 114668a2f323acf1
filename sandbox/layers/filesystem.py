"""Layer "filesystem": an almost empty, read-only root.

In it: the Python installation and the import path under neutral names, the system's library
folders, /dev/null, /dev/zero, /dev/urandom and a small /tmp. Not in it: any home, /proc, /sys,
/etc, the caller's folders. Built by the new mount calls only (Linux 5.12: mount_setattr(2)), with
every source looked up before anything can lie over it.
"""

from __future__ import annotations

import errno
import os

from sandbox import kernel
from sandbox.layers import NOBODY, Bind, Place

JAIL = "jail"  # the folder of the new root that becomes "/": see enter_jail
TMP_SIZE = 64 << 20  # bytes
_TMP_FILES = 4096

_READ_ONLY = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID
_SYSTEM_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def system_binds() -> tuple[tuple[Bind, ...], tuple[tuple[str, str], ...]]:
    """The host's library folders and the three devices; and the symbolic links among them."""
    binds = [Bind(path, path, folder=False, device=True) for path in _DEVICES]
    links = []
    for path in _SYSTEM_LIBRARIES:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            binds.append(Bind(path, path))
    return tuple(binds), tuple(links)


def build_root(place: Place) -> str:
    """In its own mount namespace: build, pivot, detach the old root."""
    trees = [(bind, _read_only_copy(bind)) for bind in place.plan.binds]
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
    root = kernel.new_tmpfs({"size": "1m", "nr_inodes": "1k", "mode": "0755"}, attributes)
    owner = str(NOBODY)
    options = {
        "size": str(TMP_SIZE),
        "nr_inodes": str(_TMP_FILES),
        "mode": "0700",
        "uid": owner,
        "gid": owner,
    }
    tmp = kernel.new_tmpfs(options, attributes)
    kernel.move_mount(root, kernel.AT_FDCWD, "/")
    os.fchdir(root)
    os.mkdir(JAIL)
    os.chdir(JAIL)
    for path, target in place.plan.links:
        _parents(path)
        os.symlink(target, path[1:])
    for bind, tree in trees:
        _target(bind)
        kernel.move_mount(tree, kernel.AT_FDCWD, bind.inside[1:])
        os.close(tree)
    os.mkdir("tmp")
    kernel.move_mount(tmp, kernel.AT_FDCWD, "tmp")
    os.close(tmp)
    kernel.mount_setattr(root, attributes | kernel.MOUNT_ATTR_RDONLY, recursive=False)
    os.fchdir(root)
    os.close(root)
    kernel.pivot_root(".", ".")  # the old root now lies over the new one; pivot_root(2)
    kernel.umount_detach(".")
    os.chdir("/")
    place.jail = True
    return "own read-only root by pivot_root"


def enter_jail(place: Place) -> str:
    """chroot below the root that was pivoted to.

    A process whose root is not its namespace's can make no user namespace (user_namespaces(7)),
    and without CAP_SYS_CHROOT and descriptors from outside it cannot get back.
    """
    if not place.jail:
        raise kernel.refused("no root was built", errno.ENOENT)
    try:
        os.chroot(f"/{JAIL}")
    except OSError as error:
        raise kernel.refused("chroot", error.errno or errno.EPERM) from error
    os.chdir("/")
    return "chroot"


def _read_only_copy(bind: Bind) -> int:
    tree = kernel.clone_tree(bind.host)
    more = kernel.MOUNT_ATTR_NOEXEC if bind.device else kernel.MOUNT_ATTR_NODEV
    kernel.mount_setattr(tree, _READ_ONLY | more)
    return tree


def _parents(path: str) -> None:
    folder = os.path.dirname(path)[1:]
    if folder:
        os.makedirs(folder, exist_ok=True)


def _target(bind: Bind) -> None:
    if bind.folder:
        os.makedirs(bind.inside[1:], exist_ok=True)
    else:
        _parents(bind.inside)
        os.close(os.open(bind.inside[1:], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
