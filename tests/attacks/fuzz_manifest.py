"""Fuzz what a parent does with a reply, guided by coverage. Not part of the suite.

atheris is no dependency of the project; an environment of its own will do:

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris -e .
    nice -n 19 /tmp/fuzz/bin/python -m tests.attacks.fuzz_manifest /tmp/inputs -max_total_time=3600

The first argument is a folder for inputs that reached something new; what follows is libFuzzer's.
What it finds goes into `corpus/`, where `test_fuzz_corpus.py` keeps it from coming back.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["isoload"]):
    from tests.attacks import fuzzing

SECONDS = 10.0


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Seven of eight change values of the reply, the others its bytes."""
    changed = fuzzing.mutate(data, max_size, seed) if seed % 8 else b""
    return changed or atheris.Mutate(data, max_size)


def timed(data: bytes) -> None:
    """One input, which may take its time but not for ever: libFuzzer's own alarm kills Python."""
    started = time.process_time()
    fuzzing.one(data)
    if time.process_time() - started > SECONDS:
        raise TimeoutError(f"more than {SECONDS} s of CPU time")


def main() -> None:
    warnings.simplefilter("ignore")
    fuzzing.one(fuzzing.seeds()["everything"])  # what is imported at first use takes seconds
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in fuzzing.seeds().items():
        (folder / name).write_bytes(data)
    options = [sys.argv[0], "-timeout=100000", *sys.argv[2:], str(folder), str(fuzzing.CORPUS)]
    atheris.Setup(options, timed, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
