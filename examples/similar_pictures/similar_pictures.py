"""Finds near-duplicates and similar pictures by the vectors that `convmlp embed` wrote.

pip install -r requirements.txt
convmlp embed PICTURES --out vectors.npy                     # and vectors.json, the names of the rows
python similar_pictures.py vectors.npy                       # prints groups of near-duplicates
python similar_pictures.py vectors.npy --sheet similar.jpg   # and draws each picture beside the most similar ones
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps

CELL = 128
"""Side of a picture in the sheet, px."""
CAPTION = 14


Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def nearest(vectors: Floats, count: int) -> tuple[Floats, Indices]:
    """The cosine similarities (n, count) of each row to the rows that are most like it, and their indices (n, count).

    The search is exact. For millions of rows take one of faiss's approximate indices, such as HNSW.
    """
    unit = np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    similarities, rows = index.search(unit, min(count + 1, len(unit)))
    others = rows != np.arange(len(unit))[:, None]
    others[others.all(axis=1), -1] = False  # a row that more than `count` equal ones come before
    shape = (len(unit), rows.shape[1] - 1)
    return similarities[others].reshape(shape), rows[others].reshape(shape)


def duplicate_groups(similarities: Floats, rows: Indices, threshold: float) -> list[list[int]]:
    """Rows that are connected by similarities of at least `threshold`: groups of two or more."""
    group_of = list(range(len(rows)))

    def root(row: int) -> int:
        while group_of[row] != row:
            row = group_of[row]
        return row

    for row, others in enumerate(rows):
        for similarity, other in zip(similarities[row], others, strict=True):
            if similarity >= threshold:
                group_of[root(int(other))] = root(row)
    groups: dict[int, list[int]] = {}
    for row in range(len(rows)):
        groups.setdefault(root(row), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def draw_sheet(names: Sequence[str], similarities: Floats, rows: Indices, folder: Path) -> PIL.Image.Image:
    """A row for each picture: itself, and then those that are most like it, with their similarity."""
    columns = rows.shape[1] + 1
    sheet = PIL.Image.new("RGB", (columns * CELL, len(rows) * (CELL + CAPTION)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for at, (others, alike) in enumerate(zip(rows, similarities, strict=True)):
        for column, row in enumerate([at, *others]):
            picture = PIL.ImageOps.exif_transpose(PIL.Image.open(folder / names[row])).convert("RGB")
            place = (column * CELL, at * (CELL + CAPTION))
            sheet.paste(PIL.ImageOps.pad(picture, (CELL, CELL), color="white"), place)
            caption = Path(names[row]).name[:18] if column == 0 else f"{alike[column - 1]:.3f}"
            draw.text((place[0] + 2, place[1] + CELL), caption, fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Find near-duplicates and similar pictures.")
    parser.add_argument("vectors", type=Path, help="the .npy of `convmlp embed`, with its .json beside it")
    parser.add_argument("--duplicates", type=float, default=0.95, help="minimum similarity (default: %(default)s)")
    parser.add_argument("--count", type=int, default=3, help="similar pictures of each (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="draw them into this picture")
    parser.add_argument("--folder", type=Path, default=Path(), help="what relative names are relative to")
    arguments = parser.parse_args()
    vectors = np.load(arguments.vectors)
    names = json.loads(arguments.vectors.with_suffix(".json").read_text(encoding="utf-8"))["names"]
    similarities, rows = nearest(vectors, arguments.count)
    groups = duplicate_groups(similarities, rows, arguments.duplicates)
    for group in groups:
        print("near-duplicates:", *(names[row] for row in group))
    if not groups:
        print("no near-duplicates")
    if arguments.sheet is not None:
        draw_sheet(names, similarities, rows, arguments.folder).save(arguments.sheet)
        print(f"{len(names)} pictures -> {arguments.sheet}")


if __name__ == "__main__":
    main()
