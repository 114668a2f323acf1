"""The location tags that the file saved: one a storage. Storages themselves stay on the CPU here.

torch.load is given `Tags` as map_location. It is a dict whose `get` answers "cpu" for every tag, as
a str that remembers the saved one; a deserializer registered before torch's own notes it. (A
callable would do, but torch refuses those for wrapper subclasses and for tensors that were rebuilt
from numpy.)
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import torch

from .reading import Damaged


class _Tag(str):
    """Equal to "cpu"; `saved` is what the file says."""

    __slots__ = ("owner", "saved")
    owner: Tags
    saved: str


class Tags(dict[str, str]):
    """A map_location that keeps every storage on the CPU and remembers the tag of each."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: dict[int, tuple[str, torch.UntypedStorage]] = {}
        self._spans: list[tuple[int, int, str]] | None = None

    def get(self, key: object, default: object = None) -> Any:
        """torch asks this with the saved tag."""
        del default
        if isinstance(key, torch.device):
            key = str(key)
        if not isinstance(key, str):
            raise Damaged(f"a storage's location is a {type(key).__name__}, not a string")
        tag = _Tag("cpu")
        tag.owner = self
        tag.saved = str(key)
        return tag

    def note(self, storage: torch.UntypedStorage, tag: str) -> None:
        """Remember the tag of one storage, and keep the storage alive so that its address stays its
        own.
        """
        self._noted[storage._cdata] = (tag, storage)
        self._spans = None

    def location(self, storage: Any) -> str:
        """The tag of a storage, or of the storage that it is a view of."""
        untyped = storage._untyped_storage if hasattr(storage, "_untyped_storage") else storage
        noted = self._noted.get(untyped._cdata)
        if noted is not None:
            return noted[0]
        if untyped.device.type != "cpu":
            return str(untyped.device)
        return self._containing(untyped.data_ptr()) if untyped.nbytes() else "cpu"

    def _containing(self, address: int) -> str:
        if self._spans is None:
            self._spans = sorted(
                (storage.data_ptr(), storage.data_ptr() + storage.nbytes(), tag)
                for tag, storage in self._noted.values()
                if storage.device.type == "cpu" and storage.nbytes()
            )
        index = bisect_right(self._spans, address, key=lambda span: span[0]) - 1
        if index >= 0 and self._spans[index][0] <= address < self._spans[index][1]:
            return self._spans[index][2]
        return "cpu"


def _no_tag(storage: object) -> None:
    del storage


def _keep(storage: Any, location: str) -> Any:
    if isinstance(location, _Tag):
        location.owner.note(storage, location.saved)
        return storage
    return None


torch.serialization.register_package(5, _no_tag, _keep)
