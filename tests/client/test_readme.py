from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.client.local_service import LocalService
from tests.service.frontend.rest_server import picture

README = Path(__file__).parents[2] / "client/README.md"


def test_the_readmes_code_runs(service: LocalService, tmp_path: Path, transport: str) -> None:
    """Every Python block of the client's README runs unchanged against a real service, over both transports."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    (tmp_path / "cat.jpg").write_bytes(picture(form="JPEG"))
    source = "\n".join(blocks).replace("http://127.0.0.1:8000", service.url(transport))
    (tmp_path / "readme.py").write_text(source)
    ran = subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "grey 100" in ran.stdout
    assert (tmp_path / "boxes.png").exists()
    assert "failed" not in ran.stdout
