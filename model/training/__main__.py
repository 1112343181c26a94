"""`python -m model.training breed|heads|outline --data DIR --out DIR`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from model.training.recipes import Course
from model.training.train import train


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training", description="Train a bundle on Oxford-IIIT Pet.")
    parser.add_argument("course", type=Course, choices=list(Course))
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, images and masks")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and bundle")
    parser.add_argument("--backbone-from", type=Path, help="breed bundle to start heads or outline from")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--stop-after", type=int, help="stop after this many steps in all, and export")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    bundle = train(
        chosen.course,
        chosen.data,
        chosen.out,
        backbone_from=chosen.backbone_from,
        stop_after=chosen.stop_after,
        command=f"python -m model.training {chosen.course.value} --data DIR --out DIR"
        + (f" --backbone-from {chosen.backbone_from.name}" if chosen.backbone_from else ""),
    )
    logging.info("wrote %s: %s", bundle.folder, bundle.config.accuracy)


if __name__ == "__main__":
    main(sys.argv[1:])
