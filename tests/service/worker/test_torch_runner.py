"""Models in the memory of the real runner."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from model.bundle import Bundle
from model.errors import BundleInvalid
from model.precision import Precision
from model.reference import REFERENCE_PARAMS, reference_input
from model.types import AS_TRAINED, Batch, ClassifyOutput
from service.settings import Settings
from service.worker.state_folder import StateFolder
from service.worker.torch_runner import MeasuredPrecision, TorchRunner, is_out_of_memory
from tests.model.tiny_backbones import tiny_backbone_bundle
from tests.model.tiny_models import tiny_bundle

SETTINGS = Settings(device="cpu", compute_threads=1, precision="exact")


def batch_for(bundle: Bundle) -> Batch:
    one = reference_input(bundle.config.preprocessing)
    return Batch(np.stack([one.pixels]), (one.geometry,), (REFERENCE_PARAMS,))


def scores(runner: TorchRunner, slot: str, bundle: Bundle) -> list[float]:
    (output,) = runner.run(slot, batch_for(bundle), 1)
    assert isinstance(output, ClassifyOutput)
    return [float(score) for score in output.scores]


def test_a_model_prepared_in_another_thread_answers_the_same(tmp_path: Path) -> None:
    """The thread that reads the weights changes no answer; two slots of one bundle are independent."""
    bundle = tiny_bundle(tmp_path, "classifier")
    runner = TorchRunner([bundle], SETTINGS)
    puts: list[object] = []
    reader = threading.Thread(target=lambda: puts.append(runner.load("another", bundle)))
    reader.start()
    reader.join()
    (put,) = puts
    assert callable(put)
    put()
    assert scores(runner, "another", bundle) == scores(runner, bundle.config.name, bundle)


def test_the_form_of_a_network_is_reported(tmp_path: Path) -> None:
    """RepMLPNet is served in deploy form, with the difference that was measured; a network of one form as trained."""
    bundle = tiny_backbone_bundle(tmp_path, "repmlpnet")
    runner = TorchRunner([bundle, tiny_bundle(tmp_path, "classifier")], SETTINGS)
    deployment = runner.deployment(bundle.config.name)
    assert deployment.form == "deploy"
    assert deployment.largest_difference is not None
    assert deployment.largest_difference < 1e-5
    assert runner.deployment("tiny") == runner.deployment("no such slot") == AS_TRAINED


def test_an_emptied_slot_frees_its_memory(tmp_path: Path) -> None:
    """After `remove` nothing holds the weights: they are free at once, without garbage collection."""
    bundle = tiny_bundle(tmp_path, "classifier")
    runner = TorchRunner((), SETTINGS)
    gc.collect()
    before = tensors()
    runner.load("slot", bundle)()
    scores(runner, "slot", bundle)
    weights = [weakref.ref(tensor) for tensor in tensors() if not any(tensor is one for one in before)]
    assert weights
    gc.disable()
    try:
        runner.remove("slot")
        assert [one for one in weights if one() is not None] == []
    finally:
        gc.enable()
    runner.remove("slot")  # an empty slot is no error
    with pytest.raises(KeyError):
        runner.run("slot", batch_for(bundle), 1)


def tensors() -> list[torch.Tensor]:
    return [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]


def test_damaged_weights_never_reach_the_device(tmp_path: Path) -> None:
    """A damaged bundle fails while it is read; its slot stays empty."""
    bundle = tiny_bundle(tmp_path, "classifier")
    safetensors.torch.save_file({"stranger": torch.zeros(1)}, bundle.weights_path)
    runner = TorchRunner((), SETTINGS)
    with pytest.raises(BundleInvalid, match="is missing"):
        runner.load("slot", bundle)
    with pytest.raises(KeyError):
        runner.run("slot", batch_for(bundle), 1)


def test_every_model_has_its_own_precision(tmp_path: Path) -> None:
    """By default each model has its measured precision; a configured precision holds for all."""
    bundle = tiny_bundle(tmp_path, "classifier")
    assert TorchRunner([bundle], SETTINGS).precision(bundle.config.name) == "exact"
    assert TorchRunner([bundle], Settings(device="cpu")).precision(bundle.config.name) in {"fp32", "bf16"}
    assert TorchRunner((), SETTINGS).precision("slot") == ""


def test_batches_at_once_answer_as_one_by_one(tmp_path: Path) -> None:
    """Two lanes compute with the same weights at the same time and do not disturb each other."""
    bundle = tiny_bundle(tmp_path, "classifier")
    runner = TorchRunner([bundle], Settings(device="cpu", compute_threads=2, precision="fp32"))
    expected = scores(runner, bundle.config.name, bundle)
    with ThreadPoolExecutor(runner.lanes) as lanes:
        found = list(lanes.map(lambda _: scores(runner, bundle.config.name, bundle), range(16)))
    for one in found:
        assert one == pytest.approx(expected, abs=1e-6)


def test_a_precision_is_selected_once_for_a_model_and_a_processor(tmp_path: Path) -> None:
    """The next start serves in the same precision without measuring, whatever it would choose now. Another
    number of threads has a selection of its own."""
    bundle, state = tiny_bundle(tmp_path, "classifier"), StateFolder(tmp_path / "state")
    settings = SETTINGS.with_changes(precision="auto")
    first = TorchRunner([bundle], settings, state)
    assert first.measuring_s > 0
    second = TorchRunner([bundle], settings, state)
    assert second.measuring_s == 0
    assert second.precision("tiny") == first.precision("tiny")
    assert scores(second, "tiny", bundle) == scores(first, "tiny", bundle)
    for kept in ("exact", "fp32"):
        measured = MeasuredPrecision(Precision(kept), 0.0, 0.0)
        state.write("precision", (bundle.config.version, *first.identity), measured)
        assert TorchRunner([bundle], settings, state).precision("tiny") == kept
    other = TorchRunner([bundle], settings.with_changes(compute_threads=2), state)
    assert other.measuring_s > 0
    assert other.identity != first.identity


def test_a_kept_precision_that_the_device_does_not_offer_is_measured_again(tmp_path: Path) -> None:
    """What was kept counts only if it is among those that would be measured."""
    bundle, state = tiny_bundle(tmp_path, "classifier"), StateFolder(tmp_path / "state")
    settings = SETTINGS.with_changes(precision="auto")
    state.write(
        "precision",
        (bundle.config.version, *TorchRunner([], settings).identity),
        MeasuredPrecision(Precision.FP16, 0.0, 0.0),
    )
    assert TorchRunner([bundle], settings, state).measuring_s > 0


@pytest.mark.parametrize("doubt", [{"spread": 9.0, "load": 0.0}, {"spread": 0.0, "load": 3.0}])
def test_a_doubtful_precision_is_measured_again_for_the_next_start(tmp_path: Path, doubt: dict[str, float]) -> None:
    """What was measured on a busy machine serves, and is measured once more; the answers change with the next start."""
    bundle, state = tiny_bundle(tmp_path, "classifier"), StateFolder(tmp_path / "state")
    settings = SETTINGS.with_changes(precision="auto")
    key = (bundle.config.version, *TorchRunner([], settings).identity)
    doubtful = MeasuredPrecision(precision=Precision.EXACT, **doubt)
    state.write("precision", key, doubtful)
    runner = TorchRunner([bundle], settings, state, machine_load=lambda: 0.5)
    expected = scores(runner, "tiny", bundle)
    for _ in range(100):  # until the rest of this machine lets it measure better
        runner.measure_again("tiny", bundle, lambda: True)
        kept = state.read("precision", key, MeasuredPrecision)
        if kept != doubtful:
            break
    assert kept is not None
    assert (kept.precision, kept.load) != (Precision.EXACT, doubtful.load)
    assert runner.precision("tiny") == "exact"
    assert scores(runner, "tiny", bundle) == expected
    assert TorchRunner([bundle], settings, state).precision("tiny") == kept.precision


def test_a_precision_is_measured_again_only_on_a_quiet_machine(tmp_path: Path) -> None:
    """A busy machine, and whatever is more important, leave the kept measurement as it is."""
    bundle, state = tiny_bundle(tmp_path, "classifier"), StateFolder(tmp_path / "state")
    settings = SETTINGS.with_changes(precision="auto")
    key = (bundle.config.version, *TorchRunner([], settings).identity)
    doubtful = MeasuredPrecision(Precision.EXACT, 9.0, 0.0)
    state.write("precision", key, doubtful)
    busy = TorchRunner([bundle], settings, state, machine_load=lambda: 1.5)
    assert busy.measure_again("tiny", bundle, lambda: True) is None
    quiet = TorchRunner([bundle], settings, state, machine_load=lambda: 0.5)
    runs = iter([True] * 5 + [False])
    assert quiet.measure_again("tiny", bundle, lambda: next(runs)) is None
    assert state.read("precision", key, MeasuredPrecision) == doubtful


def test_a_trustworthy_precision_is_not_measured_again(tmp_path: Path) -> None:
    """Nor is a configured one: nothing runs."""
    bundle, state = tiny_bundle(tmp_path, "classifier"), StateFolder(tmp_path / "state")
    settings = SETTINGS.with_changes(precision="auto")
    key = (bundle.config.version, *TorchRunner([], settings).identity)
    state.write("precision", key, MeasuredPrecision(Precision.FP32, 0.1, 0.5))
    for runner in (TorchRunner([bundle], settings, state), TorchRunner([bundle], SETTINGS)):
        assert runner.measure_again("tiny", bundle, lambda: pytest.fail("it was about to run"))


def test_each_model_can_have_a_precision_of_its_own(tmp_path: Path) -> None:
    """A precision of one model is its own, one without a name is for all others; neither is measured."""
    bundle = tiny_bundle(tmp_path, "classifier")
    settings = SETTINGS.with_changes(models=("tiny", "other"), precision="fp32,tiny=exact")
    runner = TorchRunner([bundle], settings)
    assert (runner.precision("tiny"), runner.measuring_s) == ("exact", 0)
    runner = TorchRunner([bundle], settings.with_changes(precision="fp32,other=exact"))
    assert (runner.precision("tiny"), runner.measuring_s) == ("fp32", 0)


def test_out_of_host_memory_is_recognised() -> None:
    """torch's error for a tensor that does not fit into host memory is recognised, and no other error."""
    with pytest.raises(RuntimeError) as no_room:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(no_room.value)
    with pytest.raises(RuntimeError) as another:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(another.value)


@pytest.mark.parametrize(
    ("text", "no_memory"),
    [
        ("could not create a primitive", True),
        ("could not create a memory object", True),
        ("could not create a primitive descriptor for a convolution forward propagation primitive", False),
        ("could not execute a primitive", False),
    ],
)
def test_out_of_memory_of_onednn_is_recognised(text: str, *, no_memory: bool) -> None:
    """What oneDNN raises where it cannot allocate is recognised, and not what it raises for another reason."""
    assert is_out_of_memory(RuntimeError(text)) is no_memory


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import numpy as np
from model.bundle import EMBEDDED_DIR, read_bundle
from model.reference import REFERENCE_PARAMS, reference_input
from model.types import Batch
from service.settings import Settings
from service.worker.runner import OutOfDeviceMemory
from service.worker.torch_runner import TorchRunner

IMAGES = 48
bundle = read_bundle(EMBEDDED_DIR / "convmlp_pets_breed")
runner = TorchRunner([bundle], Settings(device="cpu", compute_threads=1, precision=sys.argv[1]))
one = reference_input(bundle.config.preprocessing)
batch = Batch(np.stack([one.pixels] * IMAGES), (one.geometry,) * IMAGES, (REFERENCE_PARAMS,) * IMAGES)
pages = int(Path("/proc/self/statm").read_text().split()[0])
for megabytes in range(0, 4096, 16):
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        runner.run("convmlp_pets_breed", batch, 1)
    except OutOfDeviceMemory as error:
        message = str(error).partition(":")[0]
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        print(message)
    else:
        break
else:
    sys.exit("it never works again")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of a process's memory is Linux's")
@pytest.mark.parametrize("precision", ["exact", "fp32"])
def test_a_batch_beyond_the_process_memory_limit_is_out_of_memory(precision: str) -> None:
    """Wherever in the network a real allocation fails, the error is OutOfDeviceMemory, and the runner works on."""
    command = [sys.executable, "-c", UNDER_A_LIMIT, precision]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "[enforce fail at alloc_cpu.cpp" in ran.stdout or "could not create" in ran.stdout


@pytest.mark.parametrize(
    "library", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_out_of_memory_of_cuda_libraries_is_recognised(library: str) -> None:
    """cuDNN and cuBLAS allocate workspaces of their own, and have messages of their own."""
    assert is_out_of_memory(RuntimeError(f"{library} when calling `create(handle)`"))
