"""A bundle of int8 weights, made from another one and pictures (static quantisation after training)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model.bundle import Bundle, BundleConfig, Quantisation
from model.errors import BundleInvalid, NotFinite
from model.net.cpu.int8 import int8_accelerates
from model.net.network import build_network
from model.net.quantisation import InputRange
from model.net.weights import BundleMetadata, load_weights, write_bundle
from model.precision import Precision, compare_precisions, make_predictor
from model.predictor import load_network, reference_answer
from model.quantisation.agreement import MAIN_FIGURE, agreement, answers
from model.quantisation.pictures import halves
from model.quantisation.ranges import Unit, measure_units
from model.quantisation.rounding import Integers, round_weights, set_integers
from model.quantisation.sensitivity import unit_errors
from model.types import ModelInput, Result

CPU = torch.device("cpu")

WIDE_SHARE = 0.2
"""Of the multiplications. These layers have two thirds of a ConvMLP's error; keeping them takes an eighth longer."""

Progress = Callable[[str, int, int], None]
"""A stage, how many of its steps are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Layers whose weights are int8, the agreement, and why auto would not select it, or None."""

    ranges: dict[str, InputRange]
    wide: tuple[str, ...]
    agreement: dict[str, float]
    mismatch: str | None

    def reaches(self, minimum: float, figure: str) -> bool:
        return self.agreement[figure] >= minimum and self.mismatch is None


def quantise(
    bundle: Bundle,
    inputs: Sequence[ModelInput],
    store: Path,
    name: str,
    *,
    minimum: float,
    allow: bool = False,
    on_progress: Progress = lambda *_: None,
) -> Bundle:
    """Write the bundle `store`/`name` with int8 weights.

    The layers whose rounding changes the network's output most for their share of its multiplications stay float32, up
    to `WIDE_SHARE` of them all. If the answers then agree less than `minimum`, or those to the reference picture are
    not within its tolerances, twice as many layers stay float32, and so on until they do.

    Args:
        bundle: the model, of float weights.
        inputs: pictures as the model's inputs; every second one measures the ranges, the others the agreement.
        store: a folder of bundles.
        name: of the new bundle; one of that name is replaced.
        minimum: the least agreement, a share of 1 (`MAIN_FIGURE`).
        allow: write the bundle even if it does not reach that.
        on_progress: called after each step.

    Raises:
        BundleInvalid: the CPU has no instructions for int8; the model cannot be quantised; there are too few inputs; or
            the answers do not agree enough.
        OSError: the bundle cannot be written.
    """
    config = bundle.config
    _require_quantisable(config)
    for_ranges, for_agreement = halves(inputs)
    units = measure_units(bundle, for_ranges, lambda done: on_progress("ranges", done, len(for_ranges)))
    if not units:
        raise BundleInvalid(f"model {config.name} has no layer that can be quantised")
    try:
        expected = answers(
            make_predictor(bundle, CPU, Precision.EXACT, load_network(bundle)),
            config,
            for_agreement,
            lambda done: on_progress("float32 answers", done, len(for_agreement)),
        )
    except NotFinite as error:
        raise BundleInvalid(f"model {config.name} cannot be quantised: {error.detail}") from None
    figure = MAIN_FIGURE[config.task]
    names = [name for unit in units for name in unit.ranges]
    integers = round_weights(bundle, names, for_ranges, lambda done: on_progress("weights", done, len(names)))

    def attempt(wide: Sequence[Unit]) -> Attempt:
        return _attempt(bundle, units, wide, integers, for_agreement, expected, on_progress)

    errors = unit_errors(bundle, units, integers, for_ranges, lambda done: on_progress("sensitivity", done, len(units)))
    order = [units[at] for at in sorted(range(len(units)), key=lambda at: -errors[at] / units[at].products)]
    first = _first_wide(order)
    order, count = [*first, *(unit for unit in order if unit not in first)], len(first)
    best = attempt(order[:count])
    while 2 * count < len(units) and not best.reaches(minimum, figure):
        count = max(1, 2 * count)
        tried = attempt(order[:count])
        if (tried.mismatch is None, tried.agreement[figure]) >= (best.mismatch is None, best.agreement[figure]):
            best = tried
    if not (best.reaches(minimum, figure) or allow):
        raise BundleInvalid(_refusal(best, minimum, figure, len(for_agreement)))
    quantisation = Quantisation(
        made_from=f"{config.name} {config.version}",
        pictures=len(for_ranges),
        layers=len(best.ranges),
        wide_layers=best.wide,
        agreement=best.agreement,
        agreement_pictures=len(for_agreement),
    )
    return _write(bundle, store, name, best.ranges, integers, quantisation)


def _first_wide(order: Sequence[Unit]) -> list[Unit]:
    """The units in this order that together have at most `WIDE_SHARE` of the multiplications; larger ones are left."""
    left = WIDE_SHARE * sum(unit.products for unit in order)
    found = []
    for unit in order:
        if unit.products <= left:
            found.append(unit)
            left -= unit.products
    return found


def _require_quantisable(config: BundleConfig) -> None:
    if not int8_accelerates():
        raise BundleInvalid(
            "quantisation measures how well int8 answers agree, and this CPU has no instructions for products of "
            "bytes (AVX-512 VNNI or AMX); run it on one that has"
        )
    if config.precision == "int8":
        raise BundleInvalid(f"model {config.name} has int8 weights already; name the model that it was made from")


def _attempt(
    bundle: Bundle,
    units: Sequence[Unit],
    wide: Sequence[Unit],
    integers: Integers,
    inputs: Sequence[ModelInput],
    expected: Sequence[Result],
    on_progress: Progress,
) -> Attempt:
    """Write the bundle into a temporary folder, and compare its answers as a service would give them."""
    ranges = {name: value for unit in units if unit not in wide for name, value in unit.ranges.items()}
    names = tuple(name for unit in units if unit in wide for name in unit.ranges)
    stage = f"answers of {len(ranges)} int8 layers"
    config = bundle.config
    draft = Quantisation(
        made_from=config.name, pictures=1, layers=len(ranges), wide_layers=names, agreement={}, agreement_pictures=1
    )
    with tempfile.TemporaryDirectory(prefix="convmlp-quantise-") as folder:
        made = _write(bundle, Path(folder), config.name, ranges, integers, draft)
        predictor = make_predictor(made, CPU, Precision.INT8, load_network(made))
        found = answers(predictor, config, inputs, lambda done: on_progress(stage, done, len(inputs)))
        mismatch = compare_precisions(made, CPU, load_network(made))[Precision.INT8]
    return Attempt(ranges, names, agreement(found, expected, config), mismatch)


def _write(
    bundle: Bundle,
    store: Path,
    name: str,
    ranges: dict[str, InputRange],
    integers: Integers,
    quantisation: Quantisation,
) -> Bundle:
    config = bundle.config
    network = build_network(config.architecture, len(config.labels))
    load_weights(network, bundle)
    set_integers(network, list(ranges), integers)
    metadata = replace(
        BundleMetadata.of(config),
        name=name,
        precision="int8",
        accuracy=None,  # it was measured with other weights
        quantisation=quantisation,
    )
    return write_bundle(store, metadata, network, reference_answer, ranges)


def _refusal(best: Attempt, minimum: float, figure: str, pictures: int) -> str:
    text = f"the int8 answers agree too little: {figure} {best.agreement[figure]:.4f} on {pictures} pictures"
    if best.agreement[figure] >= minimum:
        text = f"the int8 answer to the reference picture is not within its tolerances: {best.mismatch}"
    else:
        text += f"; the least is {minimum:g}"
    return (
        f"{text}, with {len(best.wide)} of {len(best.wide) + len(best.ranges)} layers in float32; "
        "more pictures of the kind that the model will see can help, and --allow writes the model as it is"
    )
