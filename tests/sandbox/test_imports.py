"""What a zygote imports, and how little of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
LATE = "import sys; from sandbox.imports import import_parts; "


def python(code: str, *folders: Path) -> str:
    """What a fresh interpreter prints."""
    path = f"import sys; sys.path[:0] = {[str(folder) for folder in (ROOT, *folders)]}; "
    return subprocess.run(
        [sys.executable, "-c", path + code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_part_of_pyroute2_is_all_that_the_network_layer_needs() -> None:
    code = (
        'import_parts("pyroute2", "sandbox.layers.network"); from sandbox.layers import network; '
        'print("pyroute2" in sys.modules, "pyroute2.ndb.main" in sys.modules)'
    )
    assert python(LATE + code) == "False False"


@pytest.mark.parametrize("broken", ["import nowhere.at_all", "from whole import name", "1 / 0"])
def test_a_package_that_is_needed_whole_is_left_to_the_import_statement(
    tmp_path: Path, broken: str
) -> None:
    package = tmp_path / "whole"
    package.mkdir()
    (package / "__init__.py").write_text("name = 1\n")
    (package / "other.py").write_text("")
    (package / "part.py").write_text(f"import whole.other\n{broken}\n")
    (tmp_path / "user.py").write_text("from whole import part\n")
    code = (
        'import_parts("whole", "user"); print([n for n in sys.modules if n[:4] in "whole user"]); '
    )
    assert python(LATE + code, tmp_path) == "[]"
    if "whole" in broken:
        assert python(LATE + code + "import user; print(user.part.name)", tmp_path)[-1] == "1"


def test_a_package_that_is_not_there_or_imported_already_is_left_alone() -> None:
    code = 'import_parts("nowhere", "x"); import json; import_parts("json", "json.tool"); '
    assert python(LATE + code + 'print("json.tool" in sys.modules, json.loads("1"))') == "False 1"


@pytest.mark.isolation
def test_a_zygote_imports_nothing_that_only_its_parent_needs() -> None:
    with Sandbox(preload=["tests.sandbox.entries"]) as box:
        here = json.loads(box.run("tests.sandbox.entries:imported", b"").data)
    assert "sandbox.worker" in here
    assert not {"sandbox.sandbox", "sandbox.causes", "psutil", "asyncio", "pyroute2"} & set(here)


def test_what_has_a_sandbox_is_imported_once_it_is_asked_for() -> None:
    code = 'import sandbox; print("sandbox.sandbox" in sys.modules, sandbox.Sandbox.__name__)'
    assert python(code) == "False Sandbox"
    assert python("from sandbox import *; print(Sandbox, Reservation)").count("class") == 2
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sandbox.nothing  # noqa: B018
