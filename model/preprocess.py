"""Image → ModelInput: the authors' test pipelines without normalisation, which runs on the device.

Classification follows timm's evaluation transform (Pillow's antialiased bicubic). Detection and segmentation follow
mmcv's rescaling (OpenCV's bilinear). Each equals its original bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
import PIL.Image

from model.decode import Picture
from model.pixels import as_array
from model.resize import COMPILED, resize_bilinear
from model.spec import CenterCropSpec, FixedSizeSpec, KeepRatioSpec, PaddedSpec, Preprocessing
from model.types import Geometry, Image, ModelInput, Size, UInt8Array

if COMPILED:
    from model import _resample

ELONGATED = 32
"""From this aspect ratio on, only the part of the picture that the crop contains is resized."""
BICUBIC_RADIUS = 2
"""Radius of Pillow's bicubic kernel, in pixels of the coarser raster; its bilinear one is smaller."""
FILTERS = {"bicubic": PIL.Image.Resampling.BICUBIC, "bilinear": PIL.Image.Resampling.BILINEAR}


def prepare(image: Image, spec: Preprocessing) -> ModelInput:
    """Resize, then crop or pad: uint8 (h, w, 3), RGB, contiguous.

    The spec bounds the size, whatever the picture's aspect ratio.
    """
    match spec:
        case CenterCropSpec():
            return _center_crop(image.pixels, image.size, spec)
        case KeepRatioSpec() | FixedSizeSpec():
            return _padded(image.pixels, image.size, spec)


def prepare_picture(picture: Picture, spec: Preprocessing) -> ModelInput:
    """`prepare` of a picture in the decoder's memory, with equal pixels and fewer copies.

    A picture that was decoded at a reduced scale is resized from there; its geometry refers to the original size.
    """
    match spec:
        case CenterCropSpec():
            return _center_crop(picture.source, picture.original, spec)
        case KeepRatioSpec() | FixedSizeSpec():
            return _padded(as_array(picture.source), picture.original, spec)


def largest_input_bytes(spec: Preprocessing) -> int:
    """An upper bound of the bytes of a network input, whatever the picture."""
    match spec:
        case CenterCropSpec(crop=crop):
            return 3 * crop * crop
        case KeepRatioSpec(long_side=first, short_side=second) | FixedSizeSpec(width=first, height=second):
            return 3 * _round_up(first, spec.pad_multiple) * _round_up(second, spec.pad_multiple)


def content_size(original: Size, spec: Preprocessing) -> Size:
    """The size that a picture of upright size `original` is resized to, before cropping or padding."""
    height, width = original.height, original.width
    match spec:
        case CenterCropSpec(resize_shorter=side, squash=True):
            return Size(side, side)
        case FixedSizeSpec():
            return Size(spec.height, spec.width)
        case CenterCropSpec(resize_shorter=shorter):
            longer = int(shorter * max(height, width) / min(height, width))
            return Size(shorter, longer) if height <= width else Size(longer, shorter)
        case KeepRatioSpec():
            scale = min(spec.long_side / max(height, width), spec.short_side / min(height, width))
            # A side is at least one pixel.
            return Size(max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1))


def _padded(pixels: UInt8Array, original: Size, spec: PaddedSpec) -> ModelInput:
    """Of three channels, or of four, the last of which is dropped."""
    content = content_size(original, spec)
    padded = np.zeros(
        (_round_up(content.height, spec.pad_multiple), _round_up(content.width, spec.pad_multiple), 3), np.uint8
    )
    resize_bilinear(pixels, padded[: content.height, : content.width])
    return ModelInput(padded, Geometry(original, content))


def _center_crop(source: PIL.Image.Image | UInt8Array, original: Size, spec: CenterCropSpec) -> ModelInput:
    content = content_size(original, spec)
    top, left = _corner(content, spec.crop)
    rows = range(max(top, 0), min(top + spec.crop, content.height))
    columns = range(max(left, 0), min(left + spec.crop, content.width))
    elongated = max(original.height, original.width) >= ELONGATED * min(original.height, original.width)
    if elongated and not spec.squash:
        pixels = _resized_window(as_array(source), content, rows, columns, FILTERS[spec.interpolation])
    elif COMPILED and spec.interpolation == "bicubic":
        pixels = _computed_window(source, content, rows, columns)
    else:
        image = source if isinstance(source, PIL.Image.Image) else PIL.Image.fromarray(_three_channels(source))
        resized = image.resize((content.width, content.height), FILTERS[spec.interpolation])
        pixels = np.asarray(resized.crop((columns.start, rows.start, columns.stop, rows.stop)))
    if pixels.shape != (spec.crop, spec.crop, 3):
        # The crop extends beyond the picture: zeros, as torchvision pads.
        before, beside = rows.start - top, columns.start - left
        content_pixels, pixels = pixels, np.zeros((spec.crop, spec.crop, 3), np.uint8)
        pixels[before : before + len(rows), beside : beside + len(columns)] = content_pixels
    return ModelInput(pixels, Geometry(original, content))


def _computed_window(source: PIL.Image.Image | UInt8Array, content: Size, rows: range, columns: range) -> UInt8Array:
    """The given rows and columns of the picture resized to `content`, equal to Pillow's bit for bit."""
    if isinstance(source, PIL.Image.Image):
        picture: tuple[object, object] | UInt8Array = source.__arrow_c_array__()
        size = (source.height, source.width)
    else:
        picture = source
        size = source.shape[:2]
    pixels = np.empty((len(rows), len(columns), 3), np.uint8)
    corner, window = (rows.start, columns.start), (len(rows), len(columns))
    _resample.window(picture, size, (content.height, content.width), corner, window, pixels)
    return pixels


def _resized_window(
    pixels: UInt8Array, content: Size, rows: range, columns: range, resampling: PIL.Image.Resampling
) -> UInt8Array:
    """The given rows and columns of the resized picture by Pillow, without computing the rest.

    Equal to that part of the whole resized picture up to rounding: Pillow takes the window in float32 and
    chooses the order of its two passes by the sizes.
    """
    height, width = pixels.shape[:2]
    top, bottom, first_row, last_row = _source_span(rows, height / content.height, height)
    left, right, first_column, last_column = _source_span(columns, width / content.width, width)
    source = PIL.Image.fromarray(_three_channels(pixels[first_row:last_row, first_column:last_column]))
    box = (left - first_column, top - first_row, right - first_column, bottom - first_row)
    return np.asarray(source.resize((len(columns), len(rows)), resampling, box=box))


def _three_channels(pixels: UInt8Array) -> UInt8Array:
    return np.ascontiguousarray(pixels[:, :, :3])


def _source_span(target: range, scale: float, length: int) -> tuple[float, float, int, int]:
    """A range of resized pixels in source coordinates, and the range of source pixels that the kernel covers."""
    start, stop = target.start * scale, min(target.stop * scale, length)
    radius = BICUBIC_RADIUS * max(scale, 1.0) + 1
    return start, stop, max(math.floor(start - radius), 0), min(math.ceil(stop + radius), length)


def _corner(content: Size, crop: int) -> tuple[int, int]:
    """The first row and column of a centred crop, rounded as torchvision does; negative where the crop is longer."""
    top, left = (content.height - crop) / 2, (content.width - crop) / 2
    return round(top) if top >= 0 else math.ceil(top), round(left) if left >= 0 else math.ceil(left)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
