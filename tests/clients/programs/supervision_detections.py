"""Prints what supervision makes of an answer of Roboflow's API, and draws it.

python supervision_detections.py PICTURE DRAWN < ANSWER
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import PIL.Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that OpenCV is not installed
    import supervision

PICTURE, DRAWN = sys.argv[1:]

answer = json.load(sys.stdin)
detections = supervision.Detections.from_inference(answer)
names = detections.data["class_name"].tolist()
with PIL.Image.open(PICTURE) as picture:
    canvas = np.array(picture.convert("RGB"))[:, :, ::-1].copy()
tags = [f"{name} {confidence:.2f}" for name, confidence in zip(names, detections.confidence, strict=True)]
canvas = supervision.BoxAnnotator().annotate(canvas, detections)
canvas = supervision.LabelAnnotator(smart_position=True).annotate(canvas, detections, labels=tags)
PIL.Image.fromarray(canvas[:, :, ::-1]).save(DRAWN, quality=85)
print(
    json.dumps(
        {
            "boxes": detections.xyxy.tolist(),
            "confidences": detections.confidence.tolist(),
            "classes": detections.class_id.tolist(),
            "names": names,
            "masks": None if detections.mask is None else detections.mask.sum(axis=(1, 2)).tolist(),
        }
    )
)
