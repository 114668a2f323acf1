"""`isoload doctor`: what this host can enforce, why not the rest, and how to mend it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from sandbox import DEFAULT_REQUIRED, Isolation, Layer, SandboxError, State, probe

from .exits import NO_ISOLATION, WELL, say

_STYLES = {State.ENFORCED: "green", State.PARTIAL: "yellow", State.UNAVAILABLE: "red"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what this host can enforce, and how to mend it")
    parser.add_argument("--json", action="store_true", help="the same for programs, on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Confine a throwaway worker and show each layer. 3 where a default load would be refused."""
    try:
        isolation = probe()
    except SandboxError as error:
        say(f"isoload doctor: no worker could be started: {error}")
        return NO_ISOLATION
    missing = isolation.missing(DEFAULT_REQUIRED)
    if args.json:
        layers = isolation.to_dict()
        report = {
            "layers": layers,
            "required": sorted(DEFAULT_REQUIRED),
            "missing": [layer.name for layer in missing],
        }
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        _show(isolation, missing)
    return NO_ISOLATION if missing else WELL


def _show(isolation: Isolation, missing: tuple[Layer, ...]) -> None:
    """One line a layer; a terminal may wrap it, a pipe gets it whole."""
    console = Console(highlight=False)
    for layer in isolation.layers:
        line = Text(f"{layer.name:<12} ")
        line.append(f"{layer.state.value:<12} ", _STYLES[layer.state])
        line.append("; ".join(filter(None, (layer.mechanism, layer.cause))))
        if layer.remedy:
            line.append(f" → {layer.remedy}", "bold")
        console.print(line, soft_wrap=True)
    if missing:
        names = ", ".join(layer.name for layer in missing)
        console.print(f"\nThis host cannot isolate as the default policy asks: {names}.")
    else:
        console.print("\nThis host can isolate as the default policy asks.")
