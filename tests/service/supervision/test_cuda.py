"""Counting GPUs without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from service.supervision.placement import count_cuda_devices


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA and finds no device")
def test_the_count_is_what_torch_will_find() -> None:
    """The number of GPUs equals torch's, on a machine with GPUs and on one without."""
    assert count_cuda_devices() == torch.cuda.device_count()


def test_hidden_devices_do_not_count() -> None:
    """CUDA_VISIBLE_DEVICES limits the count as it limits the workers; without a driver the count is 0."""
    code = "from service.supervision.placement import count_cuda_devices; print(count_cuda_devices())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "0"
