"""The project's own goldens: small networks with weights, and a picture with pixels, from a formula.

`python -m tests.model.zoo.formula` writes the answers to `own_goldens/`. They were recorded when the networks equalled
the authors' and guard that where the authors' goldens are not available. Numbers come from numpy's RandomState, whose
streams never change.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.net.network import build_network
from model.postprocess.masks import RLE, MaskFormat, encode_detection, encode_segments
from model.postprocess.results import postprocess
from model.predictor import Predictor
from model.preprocess import prepare
from model.types import Batch, ClassifyResult, DetectResult, Image, QueryParams, Result
from model.zoo.importer import import_checkpoint
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES

FOLDER = Path(__file__).parent / "own_goldens"
GAINS = {
    "head": 1.5,
    "retina_cls": 0.25,
    "retina_reg": 0.05,
    "rpn_cls": 0.4,
    "rpn_reg": 0.05,
    "fc_cls": 0.25,
    "fc_reg": 0.2,
    "conv_logits": 0.5,
    "conv_seg": 1.0,
}
"""Of the last layers, such that scores and boxes of many sizes come out; of all other layers it is 1.4."""
SHIFTS = {"retina_cls": -7.0}
PARAMS = {
    "classifier": QueryParams(),
    "retinanet": QueryParams(score_threshold=0.855),
    "mask_rcnn": QueryParams(score_threshold=0.817),
    "semantic_fpn": QueryParams(),
}
"""The thresholds lie in wide gaps between scores, so that rounding moves none across."""


def filled(family: str) -> dict[str, Tensor]:
    """A tiny network's state dict; each tensor's values follow from its name."""
    tensors: dict[str, Tensor] = build_network(ARCHITECTURES[family], NUM_CLASSES).state_dict()
    return {name: _values(name, tensor) for name, tensor in tensors.items()}


def picture() -> Image:
    """120 x 160 px of coloured squares, 8 px each, with a little noise."""
    random = np.random.RandomState(1)
    squares = random.randint(20, 236, (15, 20, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return Image((squares + random.randint(-20, 21, squares.shape)).astype(np.uint8))


def answer(family: str) -> dict[str, Any]:
    """Checkpoint → bundle → the picture's answer, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{family}.pth"
        torch.save({"state_dict": filled(family), "meta": {}}, file)
        bundle = import_checkpoint(file, Path(folder), family.replace("_", "-"))
        predictor = Predictor(bundle, torch.device("cpu"))
    image = picture()
    model_input = prepare(image, bundle.config.preprocessing)
    batch = Batch(np.stack([model_input.pixels]), (model_input.geometry,), (PARAMS[family],))
    return _document(postprocess(predictor.predict(batch)[0], bundle.config, image.size))


def _document(result: Result) -> dict[str, Any]:
    if isinstance(result, ClassifyResult):
        return {"indices": [one.index for one in result.labels], "scores": [one.score for one in result.labels]}
    if isinstance(result, DetectResult):
        masks = [encode_detection(one, result.size, MaskFormat.RLE) for one in result.detections]
        boxes = [(one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax) for one in result.detections]
        return {
            "indices": [one.index for one in result.detections],
            "scores": [one.score for one in result.detections],
            "boxes": [[round(side, 3) for side in box] for box in boxes],
            "masks": [mask.counts for mask in masks if isinstance(mask, RLE)],
        }
    segments = encode_segments(result, MaskFormat.RLE)
    return {
        "indices": [one.index for one in result.segments],
        "masks": [segment.counts for segment in segments if isinstance(segment, RLE)],
    }


def _values(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor)
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
    layer, _, kind = name.rpartition(".")
    last = layer.rpartition(".")[2]
    if kind == "running_var":
        drawn = 1 + 0.3 * np.abs(drawn)
    elif kind == "weight" and drawn.ndim == 1:
        drawn = 1 + 0.1 * drawn
    elif kind == "weight":
        fan_in = drawn[0].size if last != "upsample" else len(drawn)
        drawn = GAINS.get(last, 1.4) / np.sqrt(fan_in) * drawn
    else:
        drawn = SHIFTS.get(last, 0.0) + 0.1 * drawn
    return torch.from_numpy(np.asarray(drawn)).to(tensor.dtype)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in ARCHITECTURES:
        (FOLDER / f"{each}.json").write_text(json.dumps(answer(each)) + "\n", encoding="utf-8")
