"""Data sets of `convmlp eval`, as training takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from model.decode import decode_picture
from model.errors import ConvMLPError
from model.metrics import TrueBox
from model.predictor import LIMITS
from model.training.data import IGNORE, Record
from model.types import Reader, Size, Task, UInt8Array
from service.evaluation.dataset import ClassTruth, DataInvalid, Dataset, MaskTruth, ObjectsTruth, Sample
from service.evaluation.formats import read_dataset
from service.evaluation.mask_datasets import class_map, mask_folders, mask_values

EVERY_FIFTH = 5
"""Of a data set without a part for validation, every fifth picture of a class is held out."""
LEARN_FOLDERS, HELD_OUT_FOLDERS = ("train", "training"), ("val", "valid", "validation", "test")
MAX_CLASSES = IGNORE


def parts_of(data: Path, task: Task, images: Path | None, validation: Path | None) -> tuple[Dataset, Dataset | None]:
    """The data set to learn from, and the one that is held out; None: there is none, and a part of the former is.

    A folder with the folders `train` and `val` (or the usual other names) has both.

    Raises:
        DataInvalid: as `read_dataset`.
    """
    learn, held_out = (
        next((data / name for name in names if (data / name).is_dir()), None)
        for names in (LEARN_FOLDERS, HELD_OUT_FOLDERS)
    )
    if validation is not None:
        held_out = validation
    elif learn is None or held_out is None:
        learn = held_out = None
    found = read_dataset(learn or data, task, images=images)
    return found, None if held_out is None else read_dataset(held_out, task, images=images)


def task_of(data: Path) -> Task:
    """The task that a data set has the truth of, by its kind."""
    if data.suffix.lower() == ".json":
        return Task.DETECT
    parts = [data, *(data / name for name in LEARN_FOLDERS)]
    return Task.SEGMENT if data.is_dir() and any(mask_folders(part) for part in parts) else Task.CLASSIFY


def class_names(learn: Dataset, task: Task, advance: Callable[[], None]) -> tuple[str, ...]:
    """The names of the data set's classes; of masks `class 0` and so on, up to the highest value below 255.

    Raises:
        DataInvalid: there are fewer than two classes, pictures have several labels, or a mask cannot be read.
    """
    if task is Task.SEGMENT:
        highest = 0
        for sample in learn.samples:
            assert isinstance(sample.truth, MaskTruth)
            values = mask_values(sample.truth, read_size(sample))
            highest = max(highest, int(values[values < IGNORE].max(initial=0)))
            advance()
        names = tuple(f"class {index}" for index in range(highest + 1))
    else:
        if learn.multi_label and task is Task.CLASSIFY:
            raise DataInvalid(f"{learn.path} has pictures of several labels, or of none; training takes one for each")
        names = learn.labels
    if len(names) < 2 and task is not Task.DETECT:
        raise DataInvalid(f"{learn.path} has {len(names)} class; training needs two or more")
    return names


def records_of(
    dataset: Dataset, indices: Mapping[str, int | None], *, fold: int, advance: Callable[[], None]
) -> list[Record]:
    """The pictures of a data set whose class is not left out.

    Args:
        dataset: with its truth.
        indices: class index of each label, or of each value of the masks; None: left out.
        fold: of all of them.
        advance: called once for each picture.

    Raises:
        DataInvalid: a picture cannot be read, or has another size than the annotations.
    """
    records = []
    for sample in dataset.samples:
        size = read_size(sample)
        truth = sample.truth
        match truth:
            case ClassTruth():
                index = indices[truth.labels[0]]
                if index is not None:
                    records.append(Record(sample.path, size, fold, -1, index, None, None))
            case ObjectsTruth():
                if truth.size is not None and truth.size != (size.width, size.height):
                    raise DataInvalid(
                        f"{sample.path} is {size.width} x {size.height} when upright, the annotations are for "
                        f"{' x '.join(map(str, truth.size))}"
                    )
                boxes = [
                    TrueBox(index, one.box, one.crowd)
                    for one in truth.objects
                    if (index := indices[one.label]) is not None
                    and one.box.xmin < one.box.xmax
                    and one.box.ymin < one.box.ymax
                ]
                records.append(Record(sample.path, size, fold, -1, 0, None, None, tuple(boxes)))
            case MaskTruth():
                mask = partial(_label_map, truth, size, indices)
                records.append(Record(sample.path, size, fold, -1, 0, None, mask))
        advance()
    return records


def every_fifth(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records to learn from, and the others: every fifth of each class, at least one of all.

    Raises:
        DataInvalid: there are fewer than two.
    """
    if len(records) < 2:
        raise DataInvalid(f"there are {len(records)} pictures; training needs two or more")
    seen: dict[int, int] = {}
    learn: list[Record] = []
    held_out: list[Record] = []
    for record in records:
        count = seen[record.label] = seen.get(record.label, 0) + 1
        (held_out if count % EVERY_FIFTH == 0 else learn).append(record)
    if not held_out:
        held_out.append(learn.pop())
    return learn, held_out


def read_size(sample: Sample) -> Size:
    """The upright size of a picture. Raises DataInvalid."""
    try:
        # A JPEG is decoded at an eighth of its size.
        return decode_picture(sample.path.read_bytes(), LIMITS, lambda _: Size(1, 1), reader=Reader.OPENCV).original
    except OSError as error:
        raise DataInvalid(f"{sample.path} cannot be read: {error.strerror}") from error
    except ConvMLPError as error:
        raise DataInvalid(f"{sample.path}: {error.detail}") from error


def _label_map(truth: MaskTruth, size: Size, indices: Mapping[str, int | None]) -> UInt8Array:
    classes = class_map(mask_values(truth, size), truth, indices)
    return np.where(classes < 0, IGNORE, classes).astype(np.uint8)
