"""A fine-tune is rolled out on a running service, with the embedded classifier as both versions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from model.bundle import CONFIG_FILE, EMBEDDED_DIR
from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import running_service

FIRST = "convmlp_pets_breed"
SECOND = f"{FIRST}@2"
REQUESTS = 200


def store_with_second_version(store: Path) -> None:
    """A store with version 2 of the embedded classifier, which has the same weights."""
    folder = store / SECOND
    shutil.copytree(EMBEDDED_DIR / FIRST, folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"name": SECOND}))


def answers(http: httpx2.Client, count: int) -> Counter[str]:
    """Which version answered each of so many requests, whose ids are always the same."""
    picture = REFERENCE_PICTURE.read_bytes()

    def answer(number: int) -> str:
        reply = http.post("/classify", content=picture, headers={"X-Request-Id": f"request-{number}"})
        reply.raise_for_status()
        model: str = reply.json()["model"]
        return model

    with ThreadPoolExecutor(16) as threads:  # so that batches form
        return Counter(threads.map(answer, range(count)))


def counted_requests(http: httpx2.Client) -> float:
    """How many requests the second version has answered so far, by /metrics."""
    lines = http.get("/metrics").text.splitlines()
    counted = [one for one in lines if one.startswith("convmlp_requests_total") and SECOND in one]
    return sum(float(one.rpartition(" ")[2]) for one in counted)


def test_traffic_is_split_as_configured_and_as_changed(tmp_path: Path) -> None:
    """A tenth of 200 requests goes to version 2. A change at run time holds at once in both front-end processes, and
    after the worker was killed; the killed worker's models come back."""
    store_with_second_version(tmp_path)
    flags = ["--models-dir", str(tmp_path), "--models", f"{FIRST},{SECOND}", "--split", f"{FIRST}=1:90,2:10"]
    flags += ["--model-control", "--precision", "exact", "--rest-processes", "2"]
    with running_service(*flags) as service, httpx2.Client(base_url=service.url, timeout=60) as http:
        counts = answers(http, REQUESTS)
        assert counts.total() == REQUESTS
        assert 6 <= counts[SECOND] <= 34  # 20 expected, and more than three standard deviations to each side
        while (counted := counted_requests(http)) < counts[SECOND]:
            time.sleep(0.05)  # the other front-end process publishes what it counted twice a second
        assert counted == counts[SECOND]
        http.put(f"/models/{FIRST}/split", json={"2": 100}).raise_for_status()
        with httpx2.Client(base_url=service.url, timeout=60) as other:
            assert {*answers(http, 20), *answers(other, 20)} == {SECOND}
        os.kill(service.pid_of("worker-0"), signal.SIGKILL)
        service.wait_for("ready", role="worker-0")
        while http.get("/readyz").status_code != 200:
            time.sleep(0.05)
        assert {*answers(http, 20)} == {SECOND}
        cards = {card["name"]: card["share"] for card in http.get("/models").json()["models"]}
        assert cards == {FIRST: 0.0, SECOND: 1.0}
