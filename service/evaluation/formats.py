"""Reading a data set: its format is found by its content, unless it is given."""

from __future__ import annotations

from pathlib import Path

from model.types import Task
from service.evaluation.class_datasets import read_class_folders, read_csv
from service.evaluation.coco_datasets import coco_format, read_category_labels, read_instances, read_panoptic
from service.evaluation.dataset import TASKS, DataFormat, DataInvalid, Dataset
from service.evaluation.mask_datasets import mask_folders, read_masks

FIRST_BYTES = 4096


def read_dataset(
    path: Path,
    task: Task,
    *,
    data_format: DataFormat | None = None,
    images: Path | None = None,
    masks: Path | None = None,
) -> Dataset:
    """Read the truth of a data set; its pictures are not read.

    Args:
        path: a file or a folder.
        task: of the model.
        data_format: None: found by the content.
        images: folder of the pictures; None: as the format's reader finds it.
        masks: folder of COCO's panoptic PNGs; None: as the reader finds it.

    Raises:
        DataInvalid: there is no such data set, or its truth is for another task.
    """
    found = _format_of(path, task) if data_format is None else data_format
    if task not in TASKS[found]:
        fitting = ", ".join(name for name, tasks in TASKS.items() if task in tasks)
        raise DataInvalid(
            f"{path} has the truth of {_tasks(found)} ({found}), the model is for {task.value!r}; expected {fitting}, "
            "or --data-format names another format"
        )
    match found:
        case DataFormat.FOLDERS:
            return read_class_folders(path)
        case DataFormat.CSV:
            return read_csv(path, images)
        case DataFormat.COCO:
            return read_instances(path, images) if task is Task.DETECT else read_category_labels(path, images)
        case DataFormat.PANOPTIC:
            return read_panoptic(path, images, masks)
        case DataFormat.MASKS:
            return read_masks(path, images)


def _format_of(path: Path, task: Task) -> DataFormat:
    """Raises DataInvalid if the path does not exist, or has no format that is read."""
    if path.is_dir():
        # A folder of masks alone has no other folders: the model's task decides what its subfolders are.
        return DataFormat.MASKS if task is Task.SEGMENT or mask_folders(path) is not None else DataFormat.FOLDERS
    try:
        with path.open("rb") as file:
            start = file.read(FIRST_BYTES)
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error.strerror}") from error
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return coco_format(path)
    if b"\0" in start or not start.strip():
        raise DataInvalid(
            f"{path} is no data set; expected a folder of classes, CSV, COCO's JSON, or folders of pictures and masks"
        )
    return DataFormat.CSV


def _tasks(found: DataFormat) -> str:
    return " or ".join(repr(task.value) for task in sorted(TASKS[found]))
