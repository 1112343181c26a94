"""Whether a file of keys or certificates has changed since it was read."""

from __future__ import annotations

from pathlib import Path

FileVersion = tuple[int, ...] | None


def file_version(path: Path) -> FileVersion:
    """A value that changes with the file, also where a link is changed to another file; None where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
