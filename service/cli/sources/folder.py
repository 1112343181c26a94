"""A folder that fills: each picture file once, as soon as it is complete."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from service.cli.inputs import SUFFIXES, ImageFile
from service.cli.sources.frame import Frame, SourceLost

SCAN_S = 0.5
"""Between two looks at the folder. A file is complete once it did not change between two of them. Notifications of the
system do not exist on network file systems, where such folders often are."""
MAX_FILES = 100_000
"""Picture files in the folder, of which each is remembered."""


class _Version(NamedTuple):
    """What changes when a file is written."""

    inode: int
    nbytes: int
    modified_ns: int


class FolderSource:
    """The picture files directly in a folder, in the order of their times of writing; hidden ones are left out.

    A file that is replaced is a new one. `existing`: also those that are there at the start. `report` prints that the
    folder is watched from now on.
    """

    is_live, resumes = False, True

    def __init__(self, folder: Path, report: Callable[[str], object], *, existing: bool) -> None:
        self._folder = folder
        self._report = report
        self._existing = existing
        self._seen: dict[str, _Version] | None = None

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """Never ends. Raises SourceLost: the folder cannot be read, or has too many files."""
        if self._seen is None:
            self._seen = {} if self._existing else await asyncio.to_thread(self._scan)
            self._report(
                f"watching {self._folder}" + (f", but for {len(self._seen)} pictures in it" if self._seen else "")
            )
        before: dict[str, _Version] = {}
        while True:
            found = await asyncio.to_thread(self._scan)
            # Names of removed files are forgotten.
            self._seen = {name: version for name, version in self._seen.items() if name in found}
            complete = [
                name
                for name, version in found.items()
                if version.nbytes and before.get(name) == version and self._seen.get(name) != version
            ]
            for name in sorted(complete, key=lambda name: (found[name].modified_ns, name)):
                self._seen[name] = found[name]
                read = partial(ImageFile(str(self._folder / name)).read)
                yield Frame(read, time.time(), fields={"file": name})
            before = found
            await asyncio.sleep(SCAN_S)

    def _scan(self) -> dict[str, _Version]:
        found: dict[str, _Version] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in SUFFIXES:
                        continue
                    try:
                        status = entry.stat()
                    except OSError:  # it was removed at this moment, or is a link that leads nowhere
                        continue
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    found[entry.name] = _Version(status.st_ino, status.st_size, status.st_mtime_ns)
                    if len(found) > MAX_FILES:
                        raise SourceLost(f"{self._folder} has more than {MAX_FILES:,} pictures; move away old ones")
        except OSError as error:
            raise SourceLost(f"{self._folder} cannot be read: {error.strerror}") from None
        return found
