"""How far one model's result of a picture is from the truth."""

from __future__ import annotations

from collections.abc import Mapping

from convmlp_client.results import Classification, Detections, Result, Segmentation
from model.metrics import TrueBox, matched_boxes
from model.types import Size
from service.evaluation.dataset import ClassTruth, MaskTruth, ObjectsTruth, Sample
from service.evaluation.figures import scored_boxes
from service.evaluation.mask_datasets import class_map, mask_values

ClassIndices = Mapping[str, int | None]
"""The model's class index of each label of the data set; None: left out."""


def truth_error(sample: Sample, result: Result, indices: ClassIndices) -> float | None:
    """Of a classifier 0 or 1, with several labels the number of wrong ones; of a detector the number of missed and of
    false boxes; of a segmenter the share of wrong pixels. None where the truth has no class of the model.

    Raises:
        DataInvalid: the picture's mask cannot be read, or does not fit it.
    """
    match sample.truth, result:
        case ClassTruth() as truth, Classification():
            true = {index for label in truth.labels if (index := indices[label]) is not None}
            if len(truth.labels) == 1:
                return float(result.labels[0].index not in true if result.labels else 1) if true else None
            return float(len(true ^ {label.index for label in result.labels}))
        case ObjectsTruth() as truth, Detections():
            return _missed_and_false(truth, result, indices)
        case MaskTruth() as truth, Segmentation():
            values = mask_values(truth, Size(result.image.height, result.image.width))
            expected = class_map(values, truth, indices)
            known = expected >= 0
            return float((expected[known] != result.label_map()[known]).mean()) if known.any() else None
        case _:
            return None


def _missed_and_false(truth: ObjectsTruth, result: Detections, indices: ClassIndices) -> float:
    """Detections that match a crowd, and crowds, are neither."""
    known = [(index, one) for one in truth.objects if (index := indices[one.label]) is not None]
    objects = [TrueBox(index, one.box) for index, one in known if not one.crowd]
    crowds = [TrueBox(index, one.box, crowd=True) for index, one in known if one.crowd]
    found = scored_boxes(result)
    pairs = matched_boxes(found, objects)
    matched = {at for at, _, _ in pairs}
    rest = [one for at, one in enumerate(found) if at not in matched]
    in_crowd = sum(bool(matched_boxes([one], crowds)) for one in rest)
    return float(len(objects) - len(pairs) + len(rest) - in_crowd)
