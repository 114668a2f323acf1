"""The public names are exactly those that are documented."""

from __future__ import annotations

import ast
import inspect
import pathlib

import isoload
import sandbox

ROOT = pathlib.Path(isoload.__file__).parent


def test_isoload_offers_exactly_what_is_documented():
    assert set(isoload.__all__) == {
        "CheckpointError", "IntegrityError", "InternalError", "IsolationError", "IsoloadError",
        "LimitError", "Limits", "Loaded", "Loader", "Opaque", "Policy", "RefusedError", "Report",
        "WorkerError", "inspect", "load", "open", "state_dict", "warm_up",
    }  # fmt: skip
    assert all(hasattr(isoload, name) for name in isoload.__all__)


def test_every_error_is_an_isoload_error():
    for name in isoload.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(isoload, name), isoload.IsoloadError)


def test_every_public_name_has_a_docstring():
    for module in (isoload, sandbox):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                assert inspect.getdoc(value), name


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "sandbox" and not node.level:
                yield from (f"sandbox:{alias.name}" for alias in node.names)


def test_isoload_uses_only_what_the_sandbox_names():
    for path in ROOT.rglob("*.py"):
        for name in _imports(path):
            assert not name.startswith("sandbox."), f"{path} imports {name}"
            if name.startswith("sandbox:"):
                assert name.removeprefix("sandbox:") in sandbox.__all__, f"{path} imports {name}"


def test_the_sandbox_knows_nothing_of_torch_pickle_or_models():
    for path in pathlib.Path(sandbox.__file__).parent.rglob("*.py"):
        for name in _imports(path):
            top = name.split(".")[0]
            assert top not in {"torch", "pickle", "isoload", "numpy", "dill"}, (
                f"{path} imports {name}"
            )


def test_nothing_in_the_parent_imports_pickle_or_the_worker():
    for path in ROOT.rglob("*.py"):
        if "worker" in path.relative_to(ROOT).parts:
            continue
        for name in _imports(path):
            assert name.split(".")[0] not in {"pickle", "_pickle", "dill", "cloudpickle", "marshal"}
            assert "worker" not in name.split("."), f"{path} imports {name}"
