"""What a zygote imports, and how little of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
        'import_parts("pyroute2", ["netlink.rtnl.marshal"]); from sandbox.layers import network; '
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
    code = 'import_parts("whole", ["part"]); print([n for n in sys.modules if "whole" in n]); '
    assert python(LATE + code, tmp_path) == "[]"
    if "whole" in broken:
        assert python(LATE + code + "from whole import part; print(part.name)", tmp_path)[-1] == "1"


def test_a_package_that_is_not_there_or_imported_already_is_left_alone() -> None:
    code = 'import_parts("nowhere", ["x"]); import json; import_parts("json", ["tool"]); '
    assert python(LATE + code + 'print("json.tool" in sys.modules, json.loads("1"))') == "False 1"
