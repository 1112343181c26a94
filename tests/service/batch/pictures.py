"""Pictures and shards for tests of jobs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image

from service.batch.compact import IdSet


def picture(seed: int, form: str = "JPEG", width: int = 72, height: int = 64) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of several sizes in two folders; their ids."""
    names = []
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number:03d}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number, width=64 + 8 * (number % 3)))
        names.append(name)
    return sorted(names)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A tar file, compressed by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def has_exactly(done: IdSet, *ids: str) -> bool:
    return len(done) == len(ids) and all(one in done for one in ids)
