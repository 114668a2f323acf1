"""The exit statuses, and which error gives which. What the commands share."""

from __future__ import annotations

import argparse
import sys

from ..errors import (
    CheckpointError,
    IntegrityError,
    IsolationError,
    IsoloadError,
    LimitError,
    RefusedError,
    WorkerError,
)
from ..policy import Policy

WELL, REFUSED, FAILED, NO_ISOLATION, USAGE = range(5)

_STATUS: dict[type[Exception], int] = {
    RefusedError: REFUSED,
    IntegrityError: REFUSED,
    LimitError: REFUSED,
    WorkerError: REFUSED,
    CheckpointError: FAILED,
    IsolationError: NO_ISOLATION,
}

_POLICIES = {
    "strict": Policy.strict,
    "upload": Policy.upload,
    "third-party": Policy.third_party,
}


def status_of(error: IsoloadError | OSError) -> int:
    """The exit status that `error` stands for."""
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), FAILED)


def say(message: object) -> None:
    """A message for people, on stderr."""
    print(message, file=sys.stderr)


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """--policy and --sha256."""
    parser.add_argument(
        "--policy",
        choices=sorted(_POLICIES),
        default="third-party",
        help="strict: as weights_only; upload: none of the file's code runs; "
        "third-party (default): up to ordinary unpickling inside the sandbox",
    )
    parser.add_argument("--sha256", metavar="HEX", help="the digest that the file must have")


def policy_of(args: argparse.Namespace) -> Policy:
    """The policy that --policy names."""
    return _POLICIES[args.policy]()
