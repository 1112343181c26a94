"""An answer does not depend on the other images of its batch, on the processor that runs the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.batch_independence import (
    CPU,
    MOST,
    Difference,
    batch_difference,
    pictures,
    precisions,
    thread_difference,
)
from model.bundle import EMBEDDED_DIR, bundle_names, find_bundle, read_bundle
from model.net.cpu.onednn import convert_to_onednn, onednn_accelerates
from model.net.layers import ChannelMLP
from model.precision import Precision, make_predictor
from model.predictor import load_network
from model.types import Size

SMALL = Size(64, 96)
"""Of an input: large enough for every level of the networks."""
BOUNDS = {
    Precision.EXACT: Difference(),
    Precision.FP32: Difference(score=1e-5, px=0.01, pixels=0.001),
    Precision.BF16: Difference(score=0.02, px=2.0, pixels=0.02),
}
"""On any processor, as docs/precision.md has them."""
EQUAL = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
"""There the documentation promises answers equal to the bit."""
INTEL = EQUAL and "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", bundle_names(None))
@pytest.mark.parametrize("precision", precisions())
def test_an_answer_is_the_same_alone_and_in_every_batch(name: str, precision: Precision) -> None:
    """Batches of 1 to 32: equal to the bit where the documentation promises it, elsewhere within its bounds."""
    bundle = read_bundle(find_bundle(name, EMBEDDED_DIR))
    predictor = make_predictor(bundle, CPU, precision, load_network(bundle))
    # `exact` runs the rows one by one, whatever their number.
    sizes = (1, 2, MOST) if precision is Precision.EXACT else range(1, MOST + 1)
    found = batch_difference(predictor, pictures(bundle, MOST, SMALL), sizes)
    bound = Difference() if EQUAL else BOUNDS[precision]
    assert found.largest(bound) == bound


@pytest.mark.parametrize("name", bundle_names(None))
@pytest.mark.parametrize("precision", [one for one in precisions() if one is not Precision.EXACT])
def test_an_answer_is_the_same_on_one_core_and_on_several(name: str, precision: Precision) -> None:
    """A lone request gets more cores than one of many: that changes no answer, within the same bounds."""
    bundle = read_bundle(find_bundle(name, EMBEDDED_DIR))
    predictor = make_predictor(bundle, CPU, precision, load_network(bundle))
    found = thread_difference(predictor, pictures(bundle, 2, SMALL), (1, 2, 3))
    bound = Difference() if EQUAL else BOUNDS[precision]
    assert found.largest(bound) == bound


EXACT_ON_THREADS = """
from service.worker.compute_libraries import configure_libraries
configure_libraries()
from benchmarks.batch_independence import *
for name in bundle_names(None):
    bundle = read_bundle(find_bundle(name, EMBEDDED_DIR))
    predictor = make_predictor(bundle, CPU, Precision.EXACT, load_network(bundle))
    print(thread_difference(predictor, pictures(bundle, 1), (1, 2, 3)) == Difference())
"""


@pytest.mark.skipif(not INTEL, reason="the promise is for Intel's processors with AVX-512")
def test_exact_is_the_same_on_one_core_and_on_several() -> None:
    """With the worker's setting of MKL, `exact` gives the same bits on any number of cores."""
    command = [sys.executable, "-c", EXACT_ON_THREADS]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True"] * len(bundle_names(None))


@pytest.mark.skipif(not onednn_accelerates(torch.float32), reason="oneDNN's operators are those of x86")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2048), (3, 2048), (1, 1, 1, 2048), (3, 1, 1, 2048)])
def test_few_rows_are_computed_as_many(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The last layer of a classifier, and a map with a single position: sums of many channels have the same last bits,
    however few rows there are."""
    if not onednn_accelerates(dtype):
        pytest.skip(f"this processor has no {dtype} of its own")
    torch.manual_seed(1)

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = ChannelMLP(2048, 2048)
            self.head = nn.Linear(2048, 1024)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.mlp(x, x))
            return out

    network = Layers().eval().to(dtype)
    convert_to_onednn(network)
    rows = torch.randn(40, *shape[1:]).to(dtype)
    with torch.inference_mode():
        many, few = network(rows), network(rows[: shape[0]])
    assert few.shape == (*shape[:-1], 1024)
    torch.testing.assert_close(many[: shape[0]], few, rtol=0, atol=0 if EQUAL else 1e-2)
