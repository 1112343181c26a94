"""`make parity`: the deviation of bf16, fp16, int8, channels-last, folded batch norm and compilation from plain fp32.

Each model answers each picture in plain fp32 (eager, contiguous, nothing folded). That is the truth for the same model
in each variant. `int8` is the model as `convmlp models quantize` makes it of these pictures, as it is served. Times are
medians for one picture at a time, for orientation only. Compilation takes about a minute a model, and again with the
second input shape; torch caches its results.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.parity_agreement import Agreement, agreement
from benchmarks.parity_models import FAMILIES, random_bundle
from benchmarks.parity_pictures import read_pictures, varied_reference
from model.bundle import Bundle, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from model.net.weights import DTYPES, DtypeName
from model.precision import Precision, make_predictor
from model.predictor import Optimisations, Predictor, default_device, load_network
from model.preprocess import prepare
from model.quantisation.quantise import quantise
from model.spec import DetectPostSpec
from model.types import Batch, Image, ModelInput, QueryParams, RawOutput
from service.cli.model_quantise import MINIMUM
from tests import goldens

OPTIMISATIONS = ("channels-last", "folded", "onednn", "compiled")
"""Fields of `Optimisations`."""
VARIANTS = "channels-last,folded,channels-last+folded+onednn,bf16,fp16,bf16+channels-last+folded+onednn,int8,compiled"
TIMED_PICTURES = 6
COLUMNS = {
    "top1": ("top-1", ".4f"),
    "probability_difference": ("max Δp", ".1e"),
    "box_ap": ("box AP", ".4f"),
    "mask_ap": ("mask AP", ".4f"),
    "matched": ("matched", ".4f"),
    "box_iou": ("box IoU", ".5f"),
    "score_difference": ("max Δscore", ".1e"),
    "pixels": ("pixels", ".6f"),
    "ms_per_picture": ("ms/picture", ".1f"),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """`name` consists of parts joined by +; each changes one property of plain fp32. `int8` is one alone."""

    name: str
    precision: DtypeName | Literal["int8"]
    optimisations: Optimisations

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Raises ValueError: a part is unknown."""
        if name == "int8":
            return cls(name, "int8", Optimisations())
        parts = name.split("+")
        unknown = [part for part in parts if part not in {*DTYPES, *OPTIMISATIONS}]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is none of {', '.join(DTYPES)}, {', '.join(OPTIMISATIONS)}; int8 stands alone"
            )
        precision: DtypeName = next((one for one in DTYPES if one in parts), "fp32")
        optimisations = Optimisations(**{name.replace("-", "_"): name in parts for name in OPTIMISATIONS})
        return cls(name, precision, optimisations)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `failure` is the reason why the variant does not run on this machine, if it does not."""

    model: str
    variant: str
    agreement: Agreement
    ms_per_picture: float | None
    failure: str | None = None

    def figures(self) -> dict[str, float | None]:
        return {**dataclasses.asdict(self.agreement), "ms_per_picture": self.ms_per_picture}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="default: the reference picture and crops of it")
    parser.add_argument("--count", type=int, default=64, help="how many of them at most (default: %(default)s)")
    parser.add_argument("--model", action="append", metavar="NAME", help="repeatable; default: the embedded models")
    parser.add_argument("--models-dir", type=Path, help="a store of bundles to look for them in first")
    parser.add_argument(
        "--family", action="append", choices=[*FAMILIES, "all"], default=[], help="also size S with random weights"
    )
    parser.add_argument("--goldens", action="store_true", help="give these the weights of ../shared/goldens")
    parser.add_argument(
        "--variants", default=VARIANTS, help="comma separated, parts joined by + (default: %(default)s)"
    )
    parser.add_argument("--device", type=torch.device, default=default_device(), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be at least 1")
    try:
        variants = [Variant.parse(name) for name in arguments.variants.split(",")]
    except ValueError as error:
        parser.error(f"--variants: {error}")
    if arguments.goldens and not goldens.GOLDENS.is_dir():
        parser.error(f"--goldens: there is no {goldens.GOLDENS}")
    pictures = read_pictures(arguments.pictures, arguments.count) if arguments.pictures else varied_reference()
    if not pictures:
        parser.error(f"--pictures: there is no picture in {arguments.pictures}")
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    rows: list[Row] = []
    for bundle in bundles(arguments):
        for row in compare(bundle, pictures, variants, arguments.device):
            rows.append(row)
            print(f"{row.model}: {row.variant}: {summary(row)}", file=sys.stderr, flush=True)
    machine = f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads"
    print(as_json(rows, machine, len(pictures)) if arguments.json else as_table(rows, machine, len(pictures)))


def bundles(arguments: argparse.Namespace) -> Iterator[Bundle]:
    """The named or embedded models, then those of the families, each on disk while it is compared."""
    for name in arguments.model or bundle_names(None):
        yield read_bundle(find_bundle(name, arguments.models_dir))
    families = FAMILIES if "all" in arguments.family else arguments.family
    for family in families:
        with tempfile.TemporaryDirectory() as store:
            yield random_bundle(Path(store), family, goldens.fill if arguments.goldens else None)


def compare(
    bundle: Bundle, pictures: Sequence[Image], variants: Sequence[Variant], device: torch.device
) -> Iterator[Row]:
    """A row for plain fp32, then one for each variant."""
    config = bundle.config
    inputs = [prepare(picture, config.preprocessing) for picture in pictures]
    params = (QueryParams(top_k=len(config.labels)),)
    batches = [Batch(np.stack((one.pixels,)), (one.geometry,), params) for one in inputs]
    post = config.postprocessing
    mask_threshold = post.mask_threshold if isinstance(post, DetectPostSpec) else 0.5
    plain = Variant("fp32", "fp32", Optimisations(channels_last=False))
    expected, ms = answers(bundle, plain, inputs, batches, device)
    yield Row(config.name, plain.name, Agreement(), ms)
    for variant in variants:
        try:
            found, ms = answers(bundle, variant, inputs, batches, device)
        except (RuntimeError, BundleInvalid) as error:
            # An operator lacks this dtype, or a compiler is missing: the other rows are still useful.
            yield Row(config.name, variant.name, Agreement(), None, reason(error))
            continue
        sizes = [picture.size for picture in pictures]
        yield Row(config.name, variant.name, agreement(expected, found, sizes, mask_threshold), ms)


@contextlib.contextmanager
def predictor_of(
    bundle: Bundle, variant: Variant, inputs: Sequence[ModelInput], device: torch.device
) -> Iterator[Predictor]:
    """A variant of a model. Without int8 weights, `int8` makes them, and removes their files again.

    Raises:
        BundleInvalid: int8 is not possible with this model, processor or device.
    """
    if variant.precision != "int8":
        yield Predictor(bundle, device, variant.precision, variant.optimisations)
        return
    with tempfile.TemporaryDirectory() as store:
        if bundle.config.precision != "int8":
            bundle = quantise(bundle, inputs, Path(store), "int8", minimum=MINIMUM, allow=True)
        yield make_predictor(bundle, device, Precision.INT8, load_network(bundle))


def answers(
    bundle: Bundle, variant: Variant, inputs: Sequence[ModelInput], batches: Sequence[Batch], device: torch.device
) -> tuple[list[RawOutput], float]:
    """The answer to each batch of one, and the median milliseconds of one after a warm-up with all shapes."""
    torch.compiler.reset()  # code compiled for another model is not needed, and counts towards torch's limits
    with predictor_of(bundle, variant, inputs, device) as predictor:
        return timed_answers(predictor, batches)


def timed_answers(predictor: Predictor, batches: Sequence[Batch]) -> tuple[list[RawOutput], float]:
    """As `answers`."""
    outputs = [predictor.predict(batch)[0] for batch in batches]
    seconds = []
    for batch in batches[:TIMED_PICTURES]:
        started_s = time.perf_counter()
        predictor.predict(batch)
        seconds.append(time.perf_counter() - started_s)
    return outputs, statistics.median(seconds) * 1000


def reason(error: Exception) -> str:
    """The first line of a message that may be long."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def summary(row: Row) -> str:
    """A row as text, for progress."""
    if row.failure is not None:
        return f"not supported here: {row.failure:.100}"
    figures = row.figures().items()
    return ", ".join(f"{COLUMNS[name][0]} {value:{COLUMNS[name][1]}}" for name, value in figures if value is not None)


def as_json(rows: Sequence[Row], machine: str, pictures: int) -> str:
    found = [
        {"model": row.model, "variant": row.variant, "not_supported": row.failure, **row.figures()} for row in rows
    ]
    return json.dumps({"machine": machine, "pictures": pictures, "rows": found}, indent=2)


def as_table(rows: Sequence[Row], machine: str, pictures: int) -> str:
    """The table, without columns that have no figure."""
    shown = [name for name in COLUMNS if any(row.figures()[name] is not None for row in rows)]
    wide = [max(len(text) for text in texts) + 2 for texts in zip(*((r.model, r.variant) for r in rows), strict=True)]
    headers = "".join(f"{COLUMNS[name][0]:>12}" for name in shown)
    lines = [
        f"{pictures} pictures; agreement with plain fp32; {machine}",
        f"{'model':{wide[0]}}{'variant':{wide[1]}}{headers}",
    ]
    for row in rows:
        figures = row.figures()
        cells = (f"{'' if figures[name] is None else format(figures[name], COLUMNS[name][1]):>12}" for name in shown)
        rest = "".join(cells) if row.failure is None else f"  not supported here: {row.failure:.100}"
        lines.append(f"{row.model:{wide[0]}}{row.variant:{wide[1]}}{rest}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
