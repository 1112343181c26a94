"""The memory of a front-end process: large pictures take no more than it may use, whatever the number of threads."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import httpx2
import numpy as np

from service.settings import Settings
from tests.fakes import fake_worker
from tests.waiting import until

MAX_DECODED_BYTES = 80 * 10**6
OTHERWISE_BYTES = 120 * 10**6
"""For bodies, answers, and memory that the allocator keeps."""
LISTENING = re.compile(r"127\.0\.0\.1:(\d+)")


@asynccontextmanager
async def front_end_process(folder: Path, **variables: str) -> AsyncIterator[tuple[httpx2.AsyncClient, int]]:
    """`convmlp rest` with a fake worker behind it: a client for it, and its process id."""
    log = folder / "log"
    async with fake_worker(Settings(heartbeat_interval_ms=200)) as worker:
        settings = {"WORKER_ADDRESS": worker.address, "HTTP_PORT": "0", "LOG_LEVEL": "info", **variables}
        environment = os.environ | {f"CONVMLP_{name}": value for name, value in settings.items()}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "service.cli", "rest"]
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=output, stderr=output)
        try:
            await until(lambda: LISTENING.search(log.read_text()) is not None)
            port = LISTENING.findall(log.read_text())[0]
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
                while (await http.get("/readyz")).status_code != 200:
                    await asyncio.sleep(0.05)
                yield http, process.pid
        finally:
            process.terminate()
            await process.wait()


def memory(pid: int, name: str) -> int:
    """Bytes, by the name in /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1]) * 1024


async def test_many_large_pictures_take_a_bounded_amount_of_memory(tmp_path: Path) -> None:
    """Eight threads could decode eight pictures of 12 megapixels at once, in 580 MB. One at a time fits."""
    _, png = cv2.imencode(".png", np.zeros((3000, 4000, 3), np.uint8))
    variables = {"PREPARE_THREADS": "8", "MAX_DECODED_BYTES": str(MAX_DECODED_BYTES)}
    async with front_end_process(tmp_path, **variables) as (http, pid):
        before = memory(pid, "VmRSS")
        responses = await asyncio.gather(*(http.post("/segment", content=png.tobytes()) for _ in range(12)))
        assert {response.status_code for response in responses} == {200}
        assert memory(pid, "VmHWM") - before < MAX_DECODED_BYTES + OTHERWISE_BYTES
        _, larger = cv2.imencode(".png", np.zeros((4000, 4000, 3), np.uint8))
        refused = await http.post("/classify", content=larger.tobytes())
        assert refused.status_code == 413
        assert f"the limit is {MAX_DECODED_BYTES:,}" in refused.json()["detail"]
