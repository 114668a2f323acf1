"""The inert reader imports nothing, runs nothing and opens nothing that a file names."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoload import manifest
from isoload.worker import main, readers
from isoload.worker.reading import Damaged, Reading, Unsupported

from .files import corpus, source_of

FORBIDDEN = (
    *("exec", "compile", "import", "open", "os.", "subprocess.", "socket.", "ctypes.", "shutil."),
    *("pty.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "marshal.", "pickle."),
    *("code.__new__", "function.__new__", "builtins.input", "sys._", "tempfile.", "glob."),
)
NUMPY_HEADER = (b"{'descr'", "{'descr'")
_seen: list[str] = []
_watching = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "compile" and args[1] == "<unknown>" and args[0].startswith(NUMPY_HEADER):
        return  # numpy reads the header of its own files as a literal
    if _watching and event.startswith(FORBIDDEN):
        _seen.append(f"{event} {args!r}"[:200])


@contextlib.contextmanager
def nothing_happens() -> Iterator[None]:
    """No import, no code, no file, no process and no socket, by what an audit hook sees."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert _seen == []


@pytest.fixture(scope="module", autouse=True)
def _hooked() -> None:
    main.warm_up()
    sys.addaudithook(_hook)


def _read(data: bytes) -> Reading:
    request = manifest.Request(fallback="inert")
    with source_of(data) as source, nothing_happens():
        return readers.read(source, request)


def _hostile() -> list[Path]:
    folder = Path(__file__).resolve().parents[4] / "shared" / "corpus" / "hostile"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tsv")


def test_no_hostile_file_makes_anything_happen() -> None:
    corpus("hostile")
    for path in _hostile():
        with contextlib.suppress(Damaged, Unsupported):
            _read(path.read_bytes())


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"cos\nsystem\n(S'id'\ntR.", "os.system"),
        (b"cbuiltins\nexec\n(S'1'\ntR.", "builtins.exec"),
        (b"cnot_a_module_anywhere\nf\n(tR.", "not_a_module_anywhere.f"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cpickle\nloads\n(S'N.'\ntR.", "pickle.loads"),
        (b"csys\nexit\n(I0\ntR.", "sys.exit"),
        (b"ctorch.hub\nload\n(S'x'\ntR.", "torch.hub.load"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(I0\ntS'b'\ntR.", "os.system"),
    ],
)
def test_what_a_pickle_asks_for_is_named_and_not_done(stream: bytes, name: str) -> None:
    reading = _read(stream)
    assert name in [*reading.globals, *(call.name for call in reading.calls)]


def test_payloads_behind_the_first_pickle_are_reported() -> None:
    reading = _read(b"\x80\x02}.\x80\x02cos\nsystem\nU\x02id\x85R.")
    assert reading.root == {}
    assert [call.name for call in reading.calls] == ["os.system"]
    assert "follow the first pickle" in reading.warnings[0]
