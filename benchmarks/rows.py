"""How much faster networks are with the compiled layers of `model/net/cpu/kernels.c` than with torch's and oneDNN's.

    python -m benchmarks.rows [--batches 1,4,8] [--rounds 9] [--models cmt_ti,convmlp_pets_breed] [--precision bf16]

Both networks have the same weights and compute the reference picture on one thread, in turn. Times are CPU times of the
thread: other processes count little. The table has the median of the ratios of all pairs of runs, and their quartiles.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median, quantiles

import torch

from benchmarks.families import CPU, MODELS, Comparison, collect_as_served, compare, comparison_options, random_bundle
from benchmarks.int8 import quantised
from model.bundle import Bundle, find_bundle, read_bundle
from model.net.cpu import rows
from model.precision import Precision, make_predictor
from model.predictor import Predictor, load_network


def pair(bundle: Bundle, precision: Precision) -> tuple[Predictor, Predictor]:
    """The network with torch's layers, and with the compiled ones."""
    available = rows.AVAILABLE
    if not available:
        raise SystemExit("kernels.c is not compiled, or this processor has no AVX-512 with bfloat16")
    rows.AVAILABLE = False
    try:
        plain = make_predictor(bundle, CPU, precision, load_network(bundle))
    finally:
        rows.AVAILABLE = available
    return plain, make_predictor(bundle, CPU, precision, load_network(bundle))


def row(name: str, precision: Precision, found: Comparison) -> str:
    """The table's line of one model and batch, in Markdown."""
    plain, made = (1000 * median(seconds) / found.size for seconds in (found.plain, found.served))
    low, middle, high = quantiles(found.ratios, n=4)
    return (
        f"| {name} | {precision} | {found.size} | {plain:.2f} | {made:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} |"
    )


def _bundle(name: str, precision: Precision, store: Path, models_dir: Path | None) -> Bundle:
    bundle = random_bundle(store, MODELS[name]) if name in MODELS else read_bundle(find_bundle(name, models_dir))
    if precision is not Precision.INT8 or bundle.config.precision == "int8":
        return bundle
    return quantised(bundle, store)


def main() -> None:
    names = "cmt_ti,hvt_ti_1,convmlp_s,convmlp_pets_breed,convmlp_pets_heads,convmlp_pets_outline"
    options = comparison_options(__doc__, names, f"(default: {names})")
    options.add_argument("--precision", type=Precision, default=Precision.BF16, help="(default: bf16)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    print("| model | precision | batch | torch's, ms a picture | compiled, ms a picture | ratio | its quartiles |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            bundle = _bundle(name, arguments.precision, Path(folder), arguments.models_dir)
            plain, made = pair(bundle, arguments.precision)
        collect_as_served()
        for size in map(int, arguments.batches.split(",")):
            found = compare(plain, made, bundle, size, arguments.rounds)
            print(row(name, arguments.precision, found), flush=True)


if __name__ == "__main__":
    from service.worker.compute_libraries import configure_libraries

    configure_libraries()
    main()
