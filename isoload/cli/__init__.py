"""The commands. Each is thin: parse, call the library, show. JSON goes to stdout alone, all else to
stderr.

Exit status: 0 well, 1 refused or hostile, 2 failed or unreadable, 3 this host cannot isolate, 4
usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import convert, doctor, inspect
from .exits import USAGE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = _Parser(prog="isoload", description="Open PyTorch checkpoints in a confined process.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for command in (inspect, convert, doctor):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away: say nothing more, also not at exit.
        sys.stdout = None
        return 141
    return status
