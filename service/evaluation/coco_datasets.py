"""Data sets with COCO's annotations: instances, and panoptic segments (cocodataset.org, "Data format")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from model.types import Box
from service.evaluation.dataset import (
    ClassTruth,
    DataFormat,
    DataInvalid,
    Dataset,
    MaskTruth,
    ObjectsTruth,
    Sample,
    TrueObject,
    require_pictures,
)

T = TypeVar("T")

MAX_BYTES = 2 << 30
"""COCO's own largest file has 450 MB."""


class _Category(msgspec.Struct):
    id: int
    name: str


class _Image(msgspec.Struct):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        return None if self.width is None or self.height is None else (self.width, self.height)


class _Instance(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0
    segmentation: Any = None


class _PanopticSegment(msgspec.Struct):
    id: int
    category_id: int


class _Panoptic(msgspec.Struct):
    image_id: int | str
    file_name: str
    segments_info: list[_PanopticSegment]


class _Instances(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Instance]


class _PanopticFile(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Panoptic]


class _Kind(msgspec.Struct):
    """The members that distinguish the two formats; all others are skipped."""

    annotations: list[dict[str, msgspec.Raw]]
    categories: msgspec.Raw
    images: msgspec.Raw


def read_json(path: Path) -> bytes:
    """The content of a file of annotations. Raises DataInvalid."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataInvalid(f"{path} has more than {MAX_BYTES:,} bytes; expected COCO's annotations")
        return path.read_bytes()
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error.strerror}") from error


def coco_format(path: Path) -> DataFormat:
    """Whether a JSON file has instances or panoptic segments. Raises DataInvalid if it has neither."""
    try:
        found = msgspec.json.decode(read_json(path), type=_Kind)
    except msgspec.MsgspecError as error:
        raise DataInvalid(
            f"{path} is not COCO's JSON: {error}; expected an object with images, categories and annotations"
        ) from error
    if any("segments_info" in annotation for annotation in found.annotations):
        return DataFormat.PANOPTIC
    return DataFormat.COCO


def read_instances(path: Path, images: Path | None) -> Dataset:
    """Pictures with boxes, and masks where the annotations have them. Pictures without an object count.

    Raises:
        DataInvalid: the file is not COCO's instances, or its pictures are not found.
    """
    file = _decode(path, _Instances, "instances")
    names = _category_names(path, file.categories)
    objects: dict[int | str, list[TrueObject]] = {image.id: [] for image in file.images}
    for number, instance in enumerate(file.annotations):
        if instance.category_id not in names:
            raise DataInvalid(f"{path}: annotation {number} has category {instance.category_id}, which is not listed")
        if instance.image_id not in objects:
            raise DataInvalid(f"{path}: annotation {number} has picture {instance.image_id}, which is not listed")
        x, y, width, height = instance.bbox
        objects[instance.image_id].append(
            TrueObject(
                names[instance.category_id],
                Box(x, y, x + width, y + height),
                width * height if instance.area is None else instance.area,
                bool(instance.iscrowd),
                instance.segmentation or None,
            )
        )
    root = _images_folder(path, file.images, images)
    samples = [
        Sample(image.file_name, root / image.file_name, ObjectsTruth(tuple(objects[image.id]), image.size))
        for image in file.images
    ]
    return Dataset(path, DataFormat.COCO, tuple(names.values()), require_pictures(path, samples), (path,))


def read_category_labels(path: Path, images: Path | None) -> Dataset:
    """Pictures with the categories of their objects as labels: any number. Raises as `read_instances`."""
    found = read_instances(path, images)
    samples = []
    for sample in found.samples:
        assert isinstance(sample.truth, ObjectsTruth)
        labels = dict.fromkeys(one.label for one in sample.truth.objects)
        samples.append(replace(sample, truth=ClassTruth(tuple(labels))))
    return replace(found, samples=tuple(samples))


def read_panoptic(path: Path, images: Path | None, masks: Path | None) -> Dataset:
    """Pictures with a category for each pixel; pixels of no segment have none.

    `masks`: the folder of the panoptic PNGs; by default a folder named as the JSON file, without its suffix.

    Raises:
        DataInvalid: the file is not COCO's panoptic segments, or its pictures or PNGs are not found.
    """
    file = _decode(path, _PanopticFile, "panoptic segments")
    names = _category_names(path, file.categories)
    masks = path.with_suffix("") if masks is None else masks
    if not masks.is_dir():
        raise DataInvalid(f"there is no folder {masks} with the panoptic PNGs of {path.name}; --masks FOLDER names it")
    pictures = {image.id: image for image in file.images}
    root = _images_folder(path, file.images, images)
    samples = []
    for number, annotation in enumerate(file.annotations):
        if annotation.image_id not in pictures:
            raise DataInvalid(f"{path}: annotation {number} has picture {annotation.image_id}, which is not listed")
        unknown = [one.category_id for one in annotation.segments_info if one.category_id not in names]
        if unknown:
            raise DataInvalid(f"{path}: annotation {number} has category {unknown[0]}, which is not listed")
        name = pictures[annotation.image_id].file_name
        labels = {segment.id: names[segment.category_id] for segment in annotation.segments_info}
        samples.append(Sample(name, root / name, MaskTruth(masks / annotation.file_name, labels, rgb=True)))
    return Dataset(path, DataFormat.PANOPTIC, tuple(names.values()), require_pictures(path, samples), (path,))


def _decode(path: Path, kind: type[T], expected: str) -> T:
    try:
        return msgspec.json.decode(read_json(path), type=kind)
    except msgspec.MsgspecError as error:
        raise DataInvalid(f"{path} is not COCO's JSON of {expected}: {error}") from error


def _category_names(path: Path, categories: Sequence[_Category]) -> Mapping[int, str]:
    names = {category.id: category.name for category in categories}
    if len(set(names.values())) < len(categories):
        raise DataInvalid(f"{path} has two categories of one id or name")
    return dict(sorted(names.items()))


def _images_folder(path: Path, images: Sequence[_Image], given: Path | None) -> Path:
    """`given`, or the first usual place that has the first picture."""
    if given is not None or not images:
        return path.parent if given is None else given
    split = path.stem.removeprefix("instances_").removeprefix("panoptic_")
    places = [
        folder / name
        for folder in (path.parent, path.parent.parent)
        for name in ("", "images", split, f"images/{split}")
    ]
    return next((place for place in places if (place / images[0].file_name).is_file()), path.parent)
