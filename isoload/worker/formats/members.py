"""A zip that torch's reader is not asked about: by Python's zipfile, as numpy reads its own.

Never used for what torch wrote with its own writer: for those, torch says which record is which.
"""

from __future__ import annotations

import codecs
import zipfile
import zlib

from ..archive import MAX_RATIO, first_line
from ..reading import Damaged, TooMuch
from ..source import Source

_MAX_MEMBERS = 100_000
codecs.lookup("cp437")  # zipfile imports it for old names: not once a file is open


class Members:
    """The members of a plain zip: `names` in their order."""

    def __init__(self, source: Source) -> None:
        try:
            self._zip = zipfile.ZipFile(source.file())
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise Damaged(f"a damaged zip archive: {first_line(error)}") from None
        self.names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        if len(self.names) > _MAX_MEMBERS:
            raise TooMuch("nodes", f"a zip archive of {len(self.names)} files")
        if len(set(self.names)) != len(self.names):
            raise Damaged("a zip archive has two files of the same name")

    def read(self, name: str) -> bytes:
        """One member's bytes; its size and its CRC hold."""
        info = self._zip.getinfo(name)
        if info.file_size > max(info.compress_size, 1) * MAX_RATIO:
            raise TooMuch(
                "output",
                f"{name!r} claims to unpack {info.compress_size} bytes to {info.file_size}",
            )
        try:
            with self._zip.open(info) as file:
                data = file.read(info.file_size)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
            NotImplementedError,  # zipfile's, for a compression that it does not know
        ) as error:
            raise Damaged(f"{name!r} cannot be unpacked: {first_line(error)}") from None
        if len(data) != info.file_size:
            raise Damaged(f"{name!r} has {len(data)} bytes, the archive says {info.file_size}")
        return data
