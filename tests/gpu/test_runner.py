"""The real runner on a real GPU: streams, memory, pings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.errors import NotFinite
from model.types import Batch
from service.settings import Settings
from service.worker.runner import DeviceMissing, OutOfDeviceMemory, Outputs
from service.worker.torch_runner import TorchRunner
from tests.model.batches import GEOMETRIES, PARAMS, assert_close, pictures
from tests.model.tiny_models import ARCHITECTURES, tiny_bundle

ON_GPU = Settings(device="cuda", precision="exact")
TIMES = 25


@pytest.fixture
def little_memory() -> Iterator[None]:
    """torch may use a hundredth of the GPU's memory."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_lanes_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Batches of all families that run on two streams at once have the answers that each has alone."""
    bundles = {family: tiny_bundle(tmp_path / family, family) for family in ARCHITECTURES}
    runner = TorchRunner((), ON_GPU)
    for family, bundle in bundles.items():
        runner.load(family, bundle)()
    batches = [Batch(pictures(seed), GEOMETRIES, PARAMS) for seed in range(4)]
    expected = {(family, at): runner.run(family, batch, 1) for family in bundles for at, batch in enumerate(batches)}
    with ThreadPoolExecutor(runner.lanes) as lanes:
        asked = [(key, lanes.submit(runner.run, key[0], batches[key[1]], 1)) for _ in range(TIMES) for key in expected]
        for key, given in asked:
            assert_all_close(given.result(), expected[key])


def assert_all_close(found: Outputs, expected: Outputs) -> None:
    for one, other in zip(found, expected, strict=True):
        assert not isinstance(one, NotFinite)
        assert not isinstance(other, NotFinite)
        assert_close(one, other)


@pytest.mark.usefixtures("little_memory")
def test_a_batch_that_does_not_fit_disturbs_no_other(tmp_path: Path) -> None:
    """A batch that does not fit raises OutOfDeviceMemory; the next one that does is answered as before."""
    runner = TorchRunner((), ON_GPU)
    runner.load("slot", tiny_bundle(tmp_path, "classifier"))()
    small = Batch(pictures(), GEOMETRIES, PARAMS)
    before = runner.run("slot", small, 1)
    pixels = torch.zeros(4096, 512, 512, 3, dtype=torch.uint8).numpy()
    with pytest.raises(OutOfDeviceMemory):
        runner.run("slot", Batch(pixels, GEOMETRIES[:1] * len(pixels), PARAMS[:1] * len(pixels)), 1)
    assert_all_close(runner.run("slot", small, 1), before)


def test_an_emptied_slot_frees_its_memory(tmp_path: Path) -> None:
    """After `remove` the GPU has as much free memory as before the model was loaded."""
    runner = TorchRunner((), ON_GPU)
    before = torch.cuda.memory_allocated()
    runner.load("slot", tiny_bundle(tmp_path, "classifier"))()
    assert torch.cuda.memory_allocated() > before
    runner.remove("slot")
    assert torch.cuda.memory_allocated() == before


def test_the_device_answers_and_names_itself() -> None:
    """A ping is computed on the device; its UUID has the form that NVML's has."""
    runner = TorchRunner((), ON_GPU)
    for _ in range(3):
        runner.ping()
    gpu = runner.gpu()
    assert gpu is not None
    assert gpu[0].startswith("GPU-")


def test_a_missing_device_is_an_error() -> None:
    """A number beyond the last GPU is an error with the number of GPUs."""
    count = torch.cuda.device_count()
    with pytest.raises(DeviceMissing, match=str(count)):
        TorchRunner((), Settings(device=f"cuda:{count}"))
