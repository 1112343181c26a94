"""Small objects in large pictures: what a detector finds with `tiles`, and without.

    python -m benchmarks.tiles DATA [--model NAME] [--pictures N] [--across 4,8] [--tiles auto,1500]

DATA is a folder of photographs of pets with the boxes of their heads (`index.csv`). Each picture of 6000 x 4000 pixels
is made of its held-out photographs: 4 across and 4 down, or 8 and 8, each enlarged or reduced until it fills its place.
A head is found if a detection of its class overlaps it by an intersection over union of 0.5. `recall` is the share of
the heads that are found, `precision` the share of the detections that find one, `CPU` the seconds of all threads for a
picture, without decoding: cutting, resizing, the network and joining.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import torch

from model.bundle import BundleConfig, find_bundle, read_bundle
from model.decode import Picture
from model.metrics import ScoredBox, TrueBox, matched_boxes
from model.postprocess.results import postprocess, require_finite
from model.predictor import Predictor
from model.preprocess import prepare
from model.tiles import Tiling, plan_tiles, prepare_tiles
from model.training.data import Record, read_index
from model.types import Batch, Box, DetectResult, Image, ModelInput, QueryParams, RawOutput, Size, Task, UInt8Array
from service.frontend.core.parameters import parse_params
from service.frontend.core.tiling import TiledOutput, window_params
from service.settings import Settings

SIZE = Size(4000, 6000)
PARAMS = QueryParams(masks=False, max_detections=1000)
SEED = 1


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture: uint8 (H, W, 3), RGB; and the heads in it."""

    pixels: UInt8Array
    heads: tuple[TrueBox, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over pictures."""

    heads: int
    detections: int
    found: int
    windows: int
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="convmlp_pets_heads")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--across", default="4,8", help="photographs across and down (default: %(default)s)")
    parser.add_argument("--tiles", default="auto,1000,1500,2000")
    parser.add_argument("--overlap", type=float)
    arguments = parser.parse_args()
    bundle = read_bundle(find_bundle(arguments.model, None))
    predictor = Predictor(bundle, torch.device("cpu"))
    records = [record for record in read_index(arguments.data).held_out() if record.head is not None]
    print("| photographs | tiles | windows | recall | precision | CPU, s |\n|---|---|---|---|---|---|")
    for across in map(int, arguments.across.split(",")):
        scenes = list(make_scenes(records, arguments.pictures, across))
        for text in ("", *arguments.tiles.split(",")):
            tiling = parse_params(tiles=text, tile_overlap=arguments.overlap).tiling if text else None
            score = measure(predictor, bundle.config, scenes, tiling)
            number = len(scenes)
            print(
                f"| {across * across} | {text or 'none'} | {score.windows / number:.0f} | "
                f"{score.found / score.heads:.3f} | {score.found / max(score.detections, 1):.3f} | "
                f"{score.cpu_s / number:.2f} |",
                flush=True,
            )


def make_scenes(records: Sequence[Record], number: int, across: int) -> Iterator[Scene]:
    """Pictures of photographs in an order that a seed decides; a photograph may be in several."""
    random = np.random.default_rng(SEED)
    for _ in range(number):
        yield make_scene([records[index] for index in random.permutation(len(records))], across)


def make_scene(records: Sequence[Record], across: int) -> Scene:
    """A picture of the first photographs whose heads are whole where they are cut to the shape of their places."""
    place = Size(SIZE.height // across, SIZE.width // across)
    pixels = np.zeros((place.height * across, place.width * across, 3), np.uint8)
    heads: list[TrueBox] = []
    for record in records:
        head = record.head
        assert head is not None
        scale = max(place.height / record.size.height, place.width / record.size.width)
        cut_x = (scale * record.size.width - place.width) / 2
        cut_y = (scale * record.size.height - place.height) / 2
        box = Box(
            scale * head.xmin - cut_x, scale * head.ymin - cut_y, scale * head.xmax - cut_x, scale * head.ymax - cut_y
        )
        if box.xmin < 0 or box.ymin < 0 or box.xmax > place.width or box.ymax > place.height:
            continue
        photograph = np.asarray(PIL.Image.open(record.path).convert("RGB"))
        moved = np.array(((scale, 0, -cut_x), (0, scale, -cut_y)), np.float32)
        down, right = divmod(len(heads), across)
        top, left = down * place.height, right * place.width
        pixels[top : top + place.height, left : left + place.width] = cv2.warpAffine(
            photograph, moved, (place.width, place.height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        moved_box = Box(left + box.xmin, top + box.ymin, left + box.xmax, top + box.ymax)
        heads.append(TrueBox(record.species, moved_box))
        if len(heads) == across * across:
            return Scene(pixels, tuple(heads))
    raise ValueError(f"{len(records)} photographs have {len(heads)} whole heads; {across * across} are needed")


def measure(predictor: Predictor, config: BundleConfig, scenes: Sequence[Scene], tiling: Tiling | None) -> Score:
    """Detect in each picture, and compare."""
    limit = Settings().max_tiles
    detections = found = windows = 0
    cpu_s = 0.0
    for scene in scenes:
        started_s = time.process_time()
        image = Image(scene.pixels)
        if tiling is None:
            output, count = _run(predictor, prepare(image, config.preprocessing), PARAMS), 1
        else:
            grid = plan_tiles(image.size, tiling, config.preprocessing, limit)
            picture = Picture(image.pixels, image.size)
            tiled = prepare_tiles(picture, config.preprocessing, grid, whole=True, before_each=lambda: None)
            params = window_params(PARAMS, Task.DETECT)
            outputs = tuple(_run(predictor, one, params) for one in tiled.inputs)
            output, count = TiledOutput(tiled, outputs, PARAMS, math.inf).join(config), len(grid)
        cpu_s += time.process_time() - started_s
        result = postprocess(output, config, image.size)
        assert isinstance(result, DetectResult)
        answers = [ScoredBox(one.index, one.score, one.box) for one in result.detections]
        detections += len(answers)
        found += len(matched_boxes(answers, scene.heads))
        windows += count
    return Score(sum(len(scene.heads) for scene in scenes), detections, found, windows, cpu_s)


def _run(predictor: Predictor, model_input: ModelInput, params: QueryParams) -> RawOutput:
    (output,) = predictor.predict(Batch(np.stack((model_input.pixels,)), (model_input.geometry,), (params,)))
    return require_finite(output)


if __name__ == "__main__":
    main()
