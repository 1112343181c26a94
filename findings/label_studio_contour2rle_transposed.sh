#!/usr/bin/env bash
# label-studio-sdk 2.1.2: contour2rle transposes the picture, so that masks of pictures that are not square are wrong.
#
# `converter.brush.contour2rle(contours, contour_id, img_width, img_height)` draws on an array of (width, height, 4), where OpenCV
# and the format have (height, width, 4). What lies right of the picture's height is lost, and the rest has another length of rows
# than the picture: decoded as the SDK's own exporter decodes it, with [height, width, 4], the mask is scattered over its rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install label-studio-sdk==2.1.2 opencv-python-headless==4.12.0.88 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from label_studio_sdk.converter.brush import contour2rle, decode_rle, mask2rle

width, height = 60, 20
square = np.zeros((height, width), np.uint8)
square[5:15, 10:18] = 255
contour = np.array([[[10, 5]], [[10, 14]], [[17, 14]], [[17, 5]]], np.int32)


def rows(rle):
    """The rows that have pixels of the mask, as the SDK exports it."""
    mask = decode_rle(rle).reshape(height, width, 4)[..., 3] > 0
    return np.flatnonzero(mask.any(axis=1)).tolist()


print("label-studio-sdk", version("label-studio-sdk"))
print("rows by mask2rle:   ", rows(mask2rle(square)))
found = rows(contour2rle([contour], 0, width, height))
print("rows by contour2rle:", found)
right = decode_rle(contour2rle([contour + [40, 0]], 0, width, height))
print("pixels of the same square 40 px further right:", int((right > 0).reshape(-1, 4).any(axis=1).sum()))
assert rows(mask2rle(square)) == list(range(5, 15))
assert found != list(range(5, 15)), "contour2rle keeps the rows now"
assert not right.any(), "contour2rle draws the right part now"
PYTHON
