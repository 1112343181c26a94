"""Detects objects in all images of a folder, and saves the images with boxes and masks drawn on them.

pip install './client[grpc,progress]'    # in a clone of the repository
python draw_folder.py IMAGES DRAWN                           # http://127.0.0.1:8000
python draw_folder.py IMAGES DRAWN grpc://127.0.0.1:8001
"""

from __future__ import annotations

import sys
from pathlib import Path

from convmlp_client import Client

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif", ".heic", ".heif", ".tif", ".tiff"}


def draw_folder(images: Path, drawn: Path, url: str) -> int:
    """Draw all images of a folder; returns the number of failures."""
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
    drawn.mkdir(parents=True, exist_ok=True)
    failures = 0
    with Client(url) as client:
        client.wait_until_ready()
        for outcome in client.detect_many(paths, concurrency=16, progress=True):
            if outcome.error is not None:
                failures += 1
                print(f"{outcome.image.name}: {outcome.error}", file=sys.stderr)
                continue
            outcome.result.draw(outcome.image).save(drawn / f"{outcome.image.stem}.png")
    return failures


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python draw_folder.py IMAGES DRAWN [URL]")
    url = sys.argv[3] if len(sys.argv) == 4 else "http://127.0.0.1:8000"
    sys.exit(1 if draw_folder(Path(sys.argv[1]), Path(sys.argv[2]), url) else 0)
