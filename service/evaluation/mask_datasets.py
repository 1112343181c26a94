"""Data sets of segmenters: a folder of PNGs that have a class index for each pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from model.types import Size
from service.evaluation.dataset import DataFormat, DataInvalid, Dataset, MaskTruth, Sample, is_picture, require_pictures

IMAGE_FOLDERS = ("images", "imgs", "img", "image", "JPEGImages", "leftImg8bit", "img_dir")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationClass", "gtFine", "ann_dir")
MAX_MASK_PIXELS = 1 << 28

ValueArray = npt.NDArray[np.int64]


def mask_folders(path: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and of masks below `path`; None if it does not have both."""
    found = [next((path / name for name in names if (path / name).is_dir()), None) for names in _FOLDERS]
    images, masks = found
    return None if images is None or masks is None else (images, masks)


_FOLDERS = (IMAGE_FOLDERS, MASK_FOLDERS)


def read_masks(path: Path, images: Path | None) -> Dataset:
    """Pictures and masks with the same relative path, whatever their suffixes.

    `path` has both folders, as IMAGE_FOLDERS and MASK_FOLDERS; or it is the folder of masks, and `images` that of the
    pictures. A picture without a mask is left out.

    Raises:
        DataInvalid: there are no such folders, or a mask has no picture.
    """
    found = mask_folders(path)
    if images is not None:
        masks = path if found is None else found[1]
    elif found is not None:
        images, masks = found
    else:
        raise DataInvalid(
            f"{path} has no folders of pictures and masks ({'/'.join(IMAGE_FOLDERS[:2])} and "
            f"{'/'.join(MASK_FOLDERS[:3])}); if it has the masks, --images FOLDER names the pictures"
        )
    pictures = {_stem(file, images): file for file in sorted(images.rglob("*")) if is_picture(file)}
    samples = []
    for mask in sorted(masks.rglob("*.png")):
        stem = _stem(mask, masks)
        if mask.name.startswith("."):
            continue
        if stem not in pictures:
            raise DataInvalid(f"the mask {mask} has no picture: expected {images / stem} with a picture's suffix")
        file = pictures[stem]
        samples.append(Sample(file.relative_to(images).as_posix(), file, MaskTruth(mask)))
    # The values are known once the masks are decoded.
    return Dataset(path, DataFormat.MASKS, (), require_pictures(path, samples))


def _stem(file: Path, root: Path) -> str:
    return file.relative_to(root).with_suffix("").as_posix()


def mask_values(truth: MaskTruth, size: Size) -> ValueArray:
    """The value of each pixel, int64 (H, W).

    Raises:
        DataInvalid: the mask cannot be read, has another size than its picture, or colours instead of values.
    """
    try:
        with PillowImage.open(truth.path, formats=("PNG",)) as file:
            if file.size != (size.width, size.height):
                raise DataInvalid(
                    f"the mask {truth.path} is {file.width} x {file.height}, its upright picture {size.width} x "
                    f"{size.height}"
                )
            if file.width * file.height > MAX_MASK_PIXELS:
                raise DataInvalid(f"the mask {truth.path} has more than {MAX_MASK_PIXELS:,} pixels")
            if truth.rgb:
                planes = np.asarray(file.convert("RGB")).astype(np.int64)
                packed: ValueArray = planes @ np.array([1, 256, 65536])
                return packed
            if file.mode not in ("1", "L", "P", "I", "I;16"):
                raise DataInvalid(
                    f"the mask {truth.path} has colours (mode {file.mode}); expected a grey or palette PNG whose "
                    "values are class indices"
                )
            return np.asarray(file).astype(np.int64)
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise DataInvalid(f"the mask {truth.path} is missing or not a complete PNG: {error}") from error


def class_map(values: ValueArray, truth: MaskTruth, index_of: Mapping[str, int | None]) -> ValueArray:
    """Class indices of the model, int64 (H, W); -1 where a pixel has no class.

    `index_of`: the model's class index of each of the data set's labels; None: such pixels are left out.

    Raises:
        DataInvalid: a value has a label that `index_of` does not have.
    """
    present, inverse = np.unique(values, return_inverse=True)
    indices = np.array([_index(value, truth, index_of) for value in present.tolist()], np.int64)
    return indices[inverse].reshape(values.shape)


def _index(value: int, truth: MaskTruth, index_of: Mapping[str, int | None]) -> int:
    label = str(value) if truth.labels is None else truth.labels.get(value)
    if label is None:
        return -1
    if label not in index_of:
        raise DataInvalid(
            f"the mask {truth.path} has the value {value}; the model's classes are {_range(index_of)}; --ignore-label "
            f"{value} leaves such pixels out, --map FILE gives them a class"
        )
    found = index_of[label]
    return -1 if found is None else found


def _range(labels: Iterable[str]) -> str:
    numbers = sorted(int(label) for label in labels if label.isdecimal())
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
