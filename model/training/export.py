"""From averaged weights to a bundle that says truthfully how good it is and whose photographs taught it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from model.bundle import Accuracy, Bundle, Source
from model.net.weights import BundleDraft, write_bundle
from model.predictor import Predictor
from model.prove import reference_answer
from model.training.calibrate import correction, fold
from model.training.data import HELD_OUT_FOLD, Record
from model.training.evaluate import measure
from model.training.recipes import Recipe
from model.types import Task

URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
LICENCE = (
    "Weights trained on the Oxford-IIIT Pet dataset. Its page offers the dataset under CC BY-SA 4.0 and says that "
    "the copyright remains with the original owners of the images; the README in the annotation archive says "
    "research purposes."
)
ATTRIBUTION = 'O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "Cats and Dogs", CVPR 2012 (Oxford-IIIT Pet)'


def export(
    recipe: Recipe,
    network: nn.Module,
    labels: Sequence[str],
    held_out: Sequence[Record],
    store: Path,
    command: str,
) -> Bundle:
    """Write `store`/`recipe.name`: scores calibrated, weights as fp16, measured as they will be read.

    The calibration changes `network`'s last layer.

    Raises:
        OSError: the folder cannot be written.
    """
    draft = BundleDraft(
        name=recipe.name,
        architecture=recipe.architecture,
        labels=tuple(labels),
        preprocessing=recipe.preprocessing,
        postprocessing=recipe.postprocessing,
        precision="fp16",
        source=Source(
            description=f"ConvMLP trained from scratch on the Oxford-IIIT Pet dataset by `{command}`",
            url=URL,
            licence=LICENCE,
            attribution=ATTRIBUTION,
        ),
        accuracy=None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        raw = write_bundle(Path(scratch), draft, network, reference_answer)
        found = correction(Predictor(raw, torch.device("cpu")), raw.config, held_out)
        if found is not None:
            fold(network, found)
        calibrated = write_bundle(Path(scratch), draft, network, reference_answer)
        metrics = measure(Predictor(calibrated, torch.device("cpu")), calibrated.config, held_out)
    accuracy = Accuracy(metrics=metrics, measured_on=_measured_on(raw.config.task, held_out))
    return write_bundle(store, replace(draft, accuracy=accuracy), network, reference_answer)


def _measured_on(task: Task, held_out: Sequence[Record]) -> str:
    counted = {
        Task.CLASSIFY: f"all {len(held_out)} photographs",
        Task.DETECT: f"the {sum(one.head is not None for one in held_out)} photographs with an annotated head",
        Task.SEGMENT: f"the {sum(one.mask is not None for one in held_out)} photographs with a mask",
    }
    return (
        f"{counted[task]} of fold {HELD_OUT_FOLD} (of five) of Oxford-IIIT Pet's trainval part, shorter side 256 "
        "px; this fold was held out of the training of all three pets models, but used to choose among recipes and "
        "to calibrate the scores; it is not the official test part"
    )
