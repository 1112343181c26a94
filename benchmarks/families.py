"""How much faster the backbones' classifiers are in the precision that `auto` takes than their plain float32 networks.

    python -m benchmarks.families [--batches 1,8] [--rounds 15] [--models hvt_ti_1,cmt_s]

`plain` is float32 in the authors' order of operations and form, as torch's own layers compute it. Both networks have
the same random weights and compute the reference picture on one thread, in turn. Times are CPU times of the thread, so
that other processes on the machine count little. The table has the median of the ratios of all pairs of runs, and their
quartiles.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch

from model.bundle import Bundle, Source
from model.families.classifier import ClassifierSpec
from model.families.cmt import CMT_SIZES
from model.families.convmlp import CONVMLP_SIZES
from model.families.hire_mlp import HIRE_MLP_SIZES
from model.families.hvt import HVT_SIZES
from model.families.registry import BackboneSpec, preprocessing_of
from model.families.repmlpnet import REPMLPNET_SIZES
from model.net.network import build_network
from model.net.weights import BundleMetadata, load_weights, write_bundle
from model.precision import select_precision
from model.predictor import Predictor, load_network
from model.reference import ClassifyReference, reference_input, reference_params
from model.spec import ClassifyPostSpec
from model.types import Batch
from service.process import COLLECT_AFTER, keep_freed_memory

CLASSES = 1000
CPU = torch.device("cpu")
MODELS: dict[str, BackboneSpec] = {
    "hvt_ti_1": HVT_SIZES["ti_1"],
    "hvt_s_1": HVT_SIZES["s_1"],
    "hire_mlp_tiny": HIRE_MLP_SIZES["tiny"],
    "hire_mlp_small": HIRE_MLP_SIZES["small"],
    "cmt_ti": CMT_SIZES["ti"],
    "cmt_s": CMT_SIZES["s"],
    "repmlpnet_t224": REPMLPNET_SIZES["t224"],
    "repmlpnet_b224": REPMLPNET_SIZES["b224"],
    "convmlp_s": CONVMLP_SIZES["s"],
}
"""Of each family the smallest variant and one of the middle."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of each pair of runs, for a batch of `size` pictures."""

    size: int
    plain: tuple[float, ...]
    served: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [plain / served for plain, served in zip(self.plain, self.served, strict=True)]


def comparison_options(description: str | None, models: str, models_help: str) -> argparse.ArgumentParser:
    """The options of a benchmark that compares networks; `models` are its default."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batches", default="1,4,8", help="pictures in a batch (default: 1,4,8)")
    options.add_argument("--rounds", type=int, default=9, help="pairs of runs (default: 9)")
    options.add_argument("--models", default=models, help=models_help)
    options.add_argument("--models-dir", type=Path, metavar="DIR", help="folder of models, for other names")
    return options


def random_bundle(store: Path, spec: BackboneSpec) -> Bundle:
    """A classifier of random weights; nobody's answers depend on them."""
    torch.manual_seed(1)
    architecture = ClassifierSpec(backbone=spec)
    metadata = BundleMetadata(
        name="random",
        architecture=architecture,
        labels=tuple(f"class {at}" for at in range(CLASSES)),
        preprocessing=preprocessing_of(architecture),
        postprocessing=ClassifyPostSpec(),
        precision="fp32",
        source=Source(description="random weights for benchmarks", url="", licence="none", attribution=""),
        accuracy=None,
    )
    return write_bundle(store, metadata, build_network(architecture, CLASSES), lambda _: ClassifyReference(labels=()))


def plain_predictor(bundle: Bundle) -> Predictor:
    """Nothing is folded, merged or laid out otherwise."""
    network = build_network(bundle.config.architecture, CLASSES)
    load_weights(network, bundle)
    return Predictor(bundle, CPU, network=network)


def collect_as_served() -> None:
    """Let the garbage collector run as in the service, where what was loaded is not looked at again and again, and keep
    freed memory as there: otherwise a batch's memory is mapped page by page."""
    keep_freed_memory()
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def compare(plain: Predictor, served: Predictor, bundle: Bundle, size: int, rounds: int) -> Comparison:
    """Both predictors in turn, after a run of each that is not measured."""
    picture = reference_input(bundle.config.preprocessing)
    params = reference_params(bundle.config.task)
    batch = Batch(np.stack([picture.pixels] * size), (picture.geometry,) * size, (params,) * size)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for predictor, found in zip((plain, served), times, strict=True):
            started_s = time.thread_time()
            predictor.predict(batch)
            if number > 0:
                found.append(time.thread_time() - started_s)
    return Comparison(size, tuple(times[0]), tuple(times[1]))


def rows(name: str, spec: BackboneSpec, sizes: Sequence[int], rounds: int) -> list[str]:
    """The table's lines of one model, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder), spec)
        plain = plain_predictor(bundle)
        selection = select_precision(bundle, CPU, load_network(bundle))
    collect_as_served()
    return [
        _row(name, selection.precision, compare(plain, selection.predictor, bundle, size, rounds)) for size in sizes
    ]


def _row(name: str, precision: str, found: Comparison) -> str:
    plain, served = (1000 * median(seconds) / found.size for seconds in (found.plain, found.served))
    low, middle, high = quantiles(found.ratios, n=4)
    return (
        f"| {name} | {found.size} | {plain:.1f} | {precision} | {served:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batches", default="1,8", help="pictures in a batch (default: 1,8)")
    options.add_argument("--rounds", type=int, default=15, help="pairs of runs (default: 15)")
    options.add_argument("--models", default=",".join(MODELS), help="some of the models (default: all)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    print("| model | batch | plain, ms a picture | `auto` takes | ms a picture | ratio | its quartiles |")
    print("|---|---|---|---|---|---|---|")
    names = arguments.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        options.error(f"--models: unknown: {', '.join(unknown)}; known: {', '.join(MODELS)}")
    for name in names:
        for row in rows(name, MODELS[name], [int(size) for size in arguments.batches.split(",")], arguments.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    from service.worker.compute_libraries import configure_libraries

    configure_libraries()
    main()
