"""The example `examples/python/draw_folder.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import PIL.Image
import PIL.ImageChops

from tests.client.local_service import LocalService
from tests.service.frontend.rest_server import picture

EXAMPLE = Path(__file__).parents[2] / "examples/python/draw_folder.py"


def test_a_folder_is_drawn(service: LocalService, tmp_path: Path, transport: str) -> None:
    """Each image is drawn. A bad one is reported on stderr and in the exit status. The progress bar counts all."""
    pictures, drawn = tmp_path / "pictures", tmp_path / "new/drawn"
    pictures.mkdir()
    for grey in (100, 101, 102):
        (pictures / f"{grey}.png").write_bytes(picture(grey))
    (pictures / "bad.jpg").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("not an image")
    command = [sys.executable, str(EXAMPLE), str(pictures), str(drawn), service.url(transport)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "bad.jpg: the image format is not supported" in ran.stderr
    assert "4/4" in ran.stderr
    assert sorted(path.name for path in drawn.iterdir()) == ["100.png", "101.png", "102.png"]
    with PIL.Image.open(drawn / "100.png") as after, PIL.Image.open(pictures / "100.png") as before:
        assert PIL.ImageChops.difference(after.convert("RGB"), before.convert("RGB")).getbbox() is not None
    (pictures / "bad.jpg").unlink()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
