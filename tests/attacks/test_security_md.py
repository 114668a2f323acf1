"""SECURITY.md and the tests agree: every test that it names exists, every line has one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.attacks.lines import LINES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
FOLDER = Path(__file__).parent
NAMED = re.findall(r"`([\w./]+\.py)::(\w+)`", TEXT)


def functions(path: Path) -> dict[str, str]:
    """The tests of a file, and their docstrings."""
    tree = ast.parse(path.read_text())
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def numbers(words: str) -> set[int]:
    """The lines that a docstring names: "Line 7: …", "Lines 1, 2 and 3: …"."""
    head = re.match(r"Lines? ([\d, and]+):", words)
    return {int(number) for number in re.findall(r"\d+", head[1])} if head else set()


def test_it_names_tests():
    assert len(NAMED) > 40


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_every_test_that_it_names_exists(file, name):
    path = ROOT / file if file.startswith("tests/") else FOLDER / file
    assert name in functions(path)


@pytest.mark.parametrize("number", LINES)
def test_every_line_is_attacked_by_a_test(number):
    attacked = {
        name
        for path in FOLDER.glob("test_*.py")
        for name, words in functions(path).items()
        if number in numbers(words)
    }
    assert attacked, LINES[number]


@pytest.mark.parametrize("number", LINES)
def test_every_line_stands_in_it_with_a_test(number):
    (row,) = re.findall(rf"^\| {number} .*$", TEXT, re.MULTILINE)
    assert "::" in row


def test_no_test_names_a_line_that_is_not_there():
    for path in FOLDER.glob("test_*.py"):
        for words in functions(path).values():
            assert numbers(words) <= set(LINES)
