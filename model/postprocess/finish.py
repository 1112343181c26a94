"""RawOutput → Result: indices get their names, numbers their place in the upright picture."""

from __future__ import annotations

from model.bundle import BundleConfig
from model.postprocess.classify import name_labels
from model.postprocess.detect import name_detections
from model.postprocess.segment import name_segments
from model.spec import ClassifyPostSpec, DetectPostSpec, SegmentPostSpec
from model.types import ClassifyOutput, DetectOutput, RawOutput, Result, SegmentOutput, Size


def finish(raw: RawOutput, config: BundleConfig, size: Size) -> Result:
    """What the network answered for one picture of upright `size`, in the words of its bundle.

    Raises:
        TypeError: the output is not of the bundle's task.
    """
    match raw, config.postprocessing:
        case ClassifyOutput(), ClassifyPostSpec():
            return name_labels(raw, config.labels, size)
        case DetectOutput(), DetectPostSpec() as post:
            return name_detections(raw, config.labels, post.mask_threshold, size)
        case SegmentOutput(), SegmentPostSpec():
            return name_segments(raw, config.labels, size)
        case _:
            raise TypeError(f"model {config.name} is for {config.task}, its output is a {type(raw).__name__}")
