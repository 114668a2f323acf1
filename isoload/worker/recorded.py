"""What stands for an object of a class that the file named: its name, its arguments and its state.

A Recorded does nothing. It has no code of the file's, resolves no name and imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from .reading import Refused


class Recorded:
    """An object that was asked for and not made, or (`reference`) the class or function itself.

    `items` is what was appended or added, `pairs` what was set by key, `state` what was given to
    BUILD.
    """

    __slots__ = ("args", "items", "kwargs", "name", "pairs", "reference", "state")

    def __init__(
        self,
        name: str,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        reference: bool = False,
    ) -> None:
        self.name = name
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.state: object = None
        self.items: list[object] = []
        self.pairs: list[tuple[object, object]] = []
        self.reference = reference

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Only there so that a defaultdict takes it as its factory."""
        raise Refused(f"{self.name} is recorded, not run")

    def __repr__(self) -> str:
        return f"<{'reference to' if self.reference else 'recorded'} {self.name}>"
