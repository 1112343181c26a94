"""Whether a file changed since it was read."""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, ...] | None


def stamp(path: Path) -> Stamp:
    """What changes when the file does, also where a link is turned to another file; None where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
