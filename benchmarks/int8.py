"""How much faster int8 is than the other precisions of the same model, for classifiers of the published sizes.

    python -m benchmarks.int8 [--batches 1,4,8] [--rounds 9] [--models convmlp_s,cmt_ti]

The networks have random weights, and are quantised with variants of the reference picture: speed does not depend on
the values. All compute the reference picture on one thread, in turn. Times are CPU times of the thread, so that other
processes on the machine count little. The table has the median of the ratios of all pairs of runs, and their quartiles.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median, quantiles

import torch

from benchmarks.families import CPU, MODELS, Comparison, compare, random_bundle
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batches", default="1,4,8", help="pictures in a batch (default: 1,4,8)")
    options.add_argument("--rounds", type=int, default=9, help="pairs of runs (default: 9)")
    options.add_argument("--models", default="convmlp_s", help=f"some of {', '.join(MODELS)} (default: convmlp_s)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    print("| model | int8 layers | batch | ms a picture | int8, ms a picture | ratio | its quartiles |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            plain = random_bundle(Path(folder), MODELS[name])
            inputs = list(reference_variants(plain.config.preprocessing))
            made = quantise(plain, inputs, Path(folder), "int8", minimum=0.0, allow=True)
            int8 = make_predictor(made, CPU, Precision.INT8, load_network(made))
            others = [(one, make_predictor(plain, CPU, one, load_network(plain))) for one in candidates(CPU)]
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
