"""Rows as one document of COCO: images, annotations with scores, and categories.

A category's id is the index of its class. An annotation has a box, the area of its mask or else of its box, and where
the row has a mask `segmentation`: run lengths, or polygons. Pictures with an error are listed in `errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from convmlp_client.geometry import ImageSize
from convmlp_client.masks import Mask
from model.postprocess.masks import MaskFormat
from model.types import Task
from service.batch.manifest import SOFTWARE, JobEntry
from service.errors import BadParameter

COCO_FILE = "coco.json"


def require_coco(job: JobEntry) -> None:
    """Raises BadParameter: the job's rows do not fit into COCO's document."""
    if len(job.models) > 1 or job.models[0].task == Task.CLASSIFY:
        raise BadParameter(
            "COCO's document has the boxes and masks of one model: use --format coco with one of detect and segment; "
            "jsonl and parquet have all answers"
        )
    mask_format = job.models[0].parameters["mask_format"]
    if mask_format == MaskFormat.PNG or (mask_format == MaskFormat.NONE and job.models[0].task == Task.SEGMENT):
        raise BadParameter("COCO's document has masks as run lengths or polygons; use --mask-format rle or polygon")


Lines = Callable[[], Iterable[bytes]]
"""Gives all rows, a line of JSON each, as often as it is called."""


def write_coco(lines: Lines, target: Path, job: JobEntry, labels: Sequence[str]) -> None:
    """Write the document of all rows.

    Args:
        lines: the rows.
        target: the file to write.
        job: what the rows are of.
        labels: of the model, by class index.

    Raises:
        OSError: it cannot be written.
    """
    (model,) = job.models
    with target.open("wb") as file:
        info = {"description": f"{model.model}@{model.version}", "version": "1.0", "contributor": SOFTWARE}
        file.write(b'{"info":' + _encoded(info) + b',\n"categories":')
        file.write(_encoded([{"id": index, "name": label} for index, label in enumerate(labels)]))
        _write_array(file, "images", _images(lines))
        _write_array(file, "annotations", _annotations(lines))
        _write_array(file, "errors", _errors(lines))
        file.write(b"}\n")


def _write_array(file: BinaryIO, name: str, items: Iterator[dict[str, Any]]) -> None:
    file.write(f',\n"{name}":['.encode())
    for number, item in enumerate(items):
        file.write((b",\n" if number else b"\n") + _encoded(item))
    file.write(b"]")


def _encoded(value: object) -> bytes:
    return msgspec.json.encode(value)


def _rows(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with their images' ids, which count from 1."""
    for image_id, line in enumerate(lines(), start=1):
        yield image_id, msgspec.json.decode(line)


def _images(lines: Lines) -> Iterator[dict[str, Any]]:
    for image_id, row in _rows(lines):
        if "error" not in row:
            yield {"id": image_id, "file_name": row["id"], **row["image"]}


def _errors(lines: Lines) -> Iterator[dict[str, Any]]:
    for _, row in _rows(lines):
        if "error" in row:
            yield {"file_name": row["id"], "error": row["error"]}


def _annotations(lines: Lines) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, row in _rows(lines):
        for item in (*row.get("detections", ()), *row.get("segments", ())):
            number += 1
            yield {"id": number, "image_id": image_id, **annotation(item, row["image"])}


def annotation(item: Mapping[str, Any], image: Mapping[str, int]) -> dict[str, Any]:
    """A detection or a segment of the REST API's JSON as COCO has it, without ids; `image`: its width and height."""
    found = {"category_id": item["index"], "score": item.get("score", item.get("confidence")), "iscrowd": 0}
    if "box" in item:
        box = item["box"]
        width, height = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
        found["bbox"] = [box["xmin"], box["ymin"], round(width, 2), round(height, 2)]
        found["area"] = round(width * height, 2)
    if "mask" in item:
        found["segmentation"] = item["mask"]
        data = item["mask"]["counts"] if isinstance(item["mask"], dict) else tuple(map(tuple, item["mask"]))
        mask = Mask(ImageSize(image["width"], image["height"]), data)
        found["area"] = mask.area
        found.setdefault("bbox", _bounds(mask))
    return found


def _bounds(mask: Mask) -> list[int]:
    """The pixels that a mask covers, as [x, y, width, height]."""
    region = mask.region()
    rows, columns = (np.flatnonzero(region.pixels.any(axis)) for axis in (1, 0))
    if not len(rows):
        return [0, 0, 0, 0]
    left, top = region.left + int(columns[0]), region.top + int(rows[0])
    return [left, top, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1]
