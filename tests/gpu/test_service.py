"""The whole service with a worker on a GPU."""

from __future__ import annotations

import json
import urllib.request

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import running_service


def test_a_gpu_worker_answers_all_three_tasks() -> None:
    """`convmlp serve` finds the GPU: /models lists it, all tasks are answered, and its memory is in the metrics."""
    with running_service() as service:
        for task in ("classify", "detect", "segment"):
            request = urllib.request.Request(f"{service.url}/{task}", REFERENCE_PICTURE.read_bytes())
            with urllib.request.urlopen(request) as response:
                (result,) = json.load(response)["results"]
            assert "error" not in result
        with urllib.request.urlopen(f"{service.url}/models") as response:
            assert all(one["device"].startswith("cuda") for one in json.load(response)["models"])
        with urllib.request.urlopen(f"{service.url}/metrics") as response:
            assert "convmlp_gpu_memory_total_bytes{" in response.read().decode()
