"""`isoload inspect FILE…`: what each file is, holds and asks for."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..default import inspect
from ..errors import IsolationError, IsoloadError, RefusedError
from ..report import Report
from ..source import check_sha256
from .exits import (
    FAILED,
    NO_ISOLATION,
    REFUSED,
    USAGE,
    WELL,
    add_load_options,
    policy_of,
    say,
    status_of,
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show what a checkpoint is, holds and asks for")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object a file, a line each")
    add_load_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect every file; the status is that of the worst."""
    try:
        check_sha256(args.sha256)
    except ValueError as error:
        say(f"isoload inspect: {error}")
        return USAGE
    statuses = set()
    for file in args.files:
        status = _inspect(file, args)
        if status == NO_ISOLATION:
            return status
        statuses.add(status)
    return next((status for status in (REFUSED, FAILED) if status in statuses), WELL)


def _inspect(file: str, args: argparse.Namespace) -> int:
    try:
        report = inspect(file, sha256=args.sha256, policy=policy_of(args))
    except (IsoloadError, OSError) as error:
        _show_error(file, error, args.json)
        return status_of(error)
    if args.json:
        print(json.dumps(report.to_dict()))
    else:
        _show(report)
    return WELL


def _show_error(file: str, error: IsoloadError | OSError, as_json: bool) -> None:
    say(f"isoload inspect: {error}")
    if as_json:
        entry: dict[str, Any] = {
            "source": file,
            "error": {"kind": type(error).__name__, "message": str(error)},
        }
        if isinstance(error, RefusedError):
            entry["report"] = error.report.to_dict()
        if isinstance(error, IsolationError):
            entry["error"]["missing"] = [layer.name for layer in error.missing]
        print(json.dumps(entry))
    elif isinstance(error, RefusedError):
        print(error.report)


def _show(report: Report) -> None:
    print(report)
    if not report.tensors:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("dtype")
    table.add_column("shape")
    table.add_column("bytes", justify="right")
    for tensor in report.tensors:
        shape = " × ".join(map(str, tensor.shape)) or "scalar"
        # Text, not str: a name from the file must not be read as markup.
        table.add_row(Text(tensor.name), tensor.dtype, shape, f"{tensor.nbytes:,}")
    Console(highlight=False).print(table)
