"""Which folders Python imports from, and what they are called inside a worker.

Parent: where `sandbox` and the preloaded packages lie. Zygote: all folders that a worker needs,
under neutral names, and the running interpreter taught those names, so that imports after
confinement find them. No home and no working folder is named inside.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from sandbox.layers import Bind

_INSIDE = "/python"
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


def folders_of(modules: Sequence[str]) -> dict[str, str]:
    """Top-level package → the folder that holds it, as this process resolves it.

    What cannot be found is left out: the zygote's own import will say so.
    """
    folders = {}
    for name in {module.partition(".")[0] for module in modules}:
        location = _location(name)
        if location is not None:
            folders[name] = os.path.dirname(os.path.abspath(location))
    return folders


def _location(name: str) -> str | None:
    module = sys.modules.get(name)
    try:
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return str(next(iter(spec.submodule_search_locations)))
    return spec.origin if spec.has_location else None


def import_parts(package: str, user: str) -> None:
    """Import the module `user`, and of `package` no more than it needs: not what the package's
    ``__init__`` imports beside that.

    For a process that needs no more of it: the package does not have them as attributes afterwards.
    Where a part needs the whole, none is imported: the import statement of who needs `user` does it
    as usual, and says what is wrong.
    """
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None:
        return
    sys.modules[package] = importlib.util.module_from_spec(spec)  # it has a path, and is not run
    try:
        importlib.import_module(user)
    except Exception:  # whatever a part says without the whole: `user` is imported as usual then
        for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
            del sys.modules[name]
    finally:
        del sys.modules[package]


class Pinned:
    """Finds the named top-level packages where the parent found them, and nothing else."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        folder = self._folders.get(fullname) if path is None else None
        return importlib.machinery.PathFinder.find_spec(fullname, [folder]) if folder else None


def follow(folders: dict[str, str]) -> None:
    """In the zygote: import as the parent does, the isolated default path first for the rest."""
    sys.meta_path.insert(0, Pinned(folders))
    for folder in sorted(set(folders.values())):
        if folder not in sys.path:
            sys.path.append(folder)


class Names:
    """The folders that a worker sees, and the paths inside for paths outside."""

    def __init__(self) -> None:
        self.binds: list[Bind] = []
        self._hosts: list[tuple[str, str]] = []  # (path outside, as given or real; path inside)
        standard = sysconfig.get_path("stdlib")
        above = os.path.dirname(standard)
        # The folder above the standard library, as $ORIGIN/../.. of extension modules wants it.
        self._add(above if os.path.basename(above).startswith("lib") else standard)
        for entry in sys.path:
            name = os.path.basename(os.path.normpath(entry or "."))
            whole = name in _PACKAGE_FOLDERS or os.path.isfile(entry)
            if whole and self.inside(entry) is None:
                self._add(entry)
        self._homes: dict[str, int] = {}
        for name, location in _loaded_locations():
            if self.inside(location) is None:
                self._add_alone(name, location)

    def _add(self, host: str) -> None:
        if os.path.exists(host):
            self._bind(os.path.abspath(host), f"{_INSIDE}/{len(self.binds)}")

    def _add_alone(self, name: str, location: str) -> None:
        """One package of a folder that holds other things too, such as a checkout."""
        home = os.path.dirname(location)
        number = self._homes.setdefault(home, len(self._homes))
        self._bind(location, f"{_INSIDE}/own{number}/{os.path.basename(location)}")

    def _bind(self, host: str, inside: str) -> None:
        self.binds.append(Bind(host, inside, os.path.isdir(host)))
        self._hosts += [(path, inside) for path in {host, os.path.realpath(host)}]

    def inside(self, path: str) -> str | None:
        """The name inside of a path outside, or None where it is not seen there."""
        for host, inside in self._hosts:
            if path == host or path.startswith(host + os.sep):
                return inside + path[len(host) :]
        return None

    def table(self) -> dict[str, str]:
        """Every path that this process would import by → its name inside."""
        table = {}
        for path in _paths_in_use():
            inside = self.inside(path)
            if inside is not None:
                table[path] = inside
        for home, number in self._homes.items():
            table.setdefault(home, f"{_INSIDE}/own{number}")
        return table


def _loaded_locations() -> Iterator[tuple[str, str]]:
    for name, module in _modules():
        if "." in name or name == "__main__":
            continue
        search = _search(module, "__path__")
        for location in [_value(module, "__file__")] if search is None else search:
            if isinstance(location, str) and os.path.exists(location):
                yield name, os.path.abspath(location)


def _paths_in_use() -> Iterator[str]:
    yield from sys.path
    for _, module in _modules():
        for owner, attribute in _single_paths(module):
            value = _value(owner, attribute)
            if isinstance(value, str):
                yield value
        for owner, attribute in _search_paths(module):
            yield from _search(owner, attribute) or ()


def rename(table: dict[str, str]) -> None:
    """Let this interpreter import by the names of `table` instead: once, in the zygote."""
    sys.path[:] = [table.get(entry, entry) for entry in sys.path]
    for _, module in _modules():
        for owner, attribute in _single_paths(module):
            value = _value(owner, attribute)
            if isinstance(value, str) and value in table:
                _set(owner, attribute, table[value])
        for owner, attribute in _search_paths(module):
            search = _search(owner, attribute)
            if search is not None:
                _set(owner, attribute, [table.get(path, path) for path in search])
    sys.path_importer_cache.clear()
    for attribute in ("prefix", "base_prefix", "exec_prefix", "base_exec_prefix"):
        setattr(sys, attribute, _INSIDE)
    sys.executable = ""


def _modules() -> list[tuple[str, ModuleType]]:
    return [(n, m) for n, m in list(sys.modules.items()) if isinstance(m, ModuleType)]


def _single_paths(module: ModuleType) -> Iterator[tuple[Any, str]]:
    yield module, "__file__"
    yield module, "__cached__"
    spec = _value(module, "__spec__")
    if isinstance(spec, importlib.machinery.ModuleSpec):
        yield spec, "origin"
        yield spec, "cached"
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            yield spec.loader, "path"


def _search_paths(module: ModuleType) -> Iterator[tuple[Any, str]]:
    yield module, "__path__"
    spec = _value(module, "__spec__")
    if isinstance(spec, importlib.machinery.ModuleSpec):
        yield spec, "submodule_search_locations"


def _value(owner: Any, attribute: str) -> Any:
    """Without calling a module's own __getattr__, which may import, warn or raise."""
    if isinstance(owner, ModuleType):
        return owner.__dict__.get(attribute)
    return getattr(owner, attribute, None)


def _set(owner: Any, attribute: str, value: Any) -> None:
    """Without a module's own __setattr__, which may refuse."""
    if isinstance(owner, ModuleType):
        owner.__dict__[attribute] = value
    else:
        setattr(owner, attribute, value)


def _search(owner: Any, attribute: str) -> list[str] | None:
    search = _value(owner, attribute)
    return None if search is None else [str(path) for path in search]
