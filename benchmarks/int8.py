"""How much faster int8 is than the other precisions of the same model.

    python -m benchmarks.int8 [--batches 1,4,8] [--rounds 9] [--models convmlp_s,cmt_ti]
    python -m benchmarks.int8 --models-dir DIR --models convmlp_pets_breed_int8

Classifiers of the published sizes have random weights, and are quantised with variants of the reference picture: speed
does not depend on the values. Other names are of models that `convmlp models quantize` made, in DIR. All compute the
reference picture on one thread, in turn. Times are CPU times of the thread: other processes count little.
The table has the median of the ratios of all pairs of runs, and their quartiles.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median, quantiles

import torch

from benchmarks.families import CPU, MODELS, Comparison, collect_as_served, compare, comparison_options, random_bundle
from model.bundle import Bundle, find_bundle, read_bundle
from model.precision import Precision, candidates, make_predictor
from model.predictor import load_network
from model.quantisation.pictures import reference_variants
from model.quantisation.quantise import quantise


def row(name: str, other: Precision, layers: int, found: Comparison) -> str:
    """The table's line of one pair of precisions, in Markdown."""
    slower, faster = (1000 * median(seconds) / found.size for seconds in (found.plain, found.served))
    low, middle, high = quantiles(found.ratios, n=4)
    return (
        f"| {name} | {layers} | {found.size} | {other} {slower:.1f} | {faster:.1f} | {middle:.2f} | "
        f"{low:.2f} to {high:.2f} |"
    )


def quantised(plain: Bundle, store: Path) -> Bundle:
    """The model with int8 weights, by variants of the reference picture, whatever its accuracy."""
    inputs = list(reference_variants(plain.config.preprocessing))
    return quantise(plain, inputs, store, "int8", minimum=0.0, allow=True)


def pair(name: str, store: Path, models_dir: Path | None) -> tuple[Bundle, Bundle]:
    """A model of float weights and the one of int8 weights that was made of it."""
    if name in MODELS:
        plain = random_bundle(store, MODELS[name])
        return plain, quantised(plain, store)
    made = read_bundle(find_bundle(name, models_dir))
    if made.config.quantisation is None:
        raise SystemExit(f"--models: {name} was not made by `convmlp models quantize`")
    return read_bundle(find_bundle(made.config.quantisation.made_from.split()[0], models_dir)), made


def main() -> None:
    options = comparison_options(__doc__, "convmlp_s", f"some of {', '.join(MODELS)} (default: convmlp_s)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    print("| model | int8 layers | batch | ms a picture | int8, ms a picture | ratio | its quartiles |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            plain, made = pair(name, Path(folder), arguments.models_dir)
            int8 = make_predictor(made, CPU, Precision.INT8, load_network(made))
            others = [(one, make_predictor(plain, CPU, one, load_network(plain))) for one in candidates(CPU)]
        collect_as_served()
        quantisation = made.config.quantisation
        assert quantisation is not None
        for size in map(int, arguments.batches.split(",")):
            for other, predictor in others:
                found = compare(predictor, int8, plain, size, arguments.rounds)
                print(row(name, other, quantisation.layers, found), flush=True)


if __name__ == "__main__":
    from service.worker.compute_libraries import configure_libraries

    configure_libraries()
    main()
