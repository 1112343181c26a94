"""An auto-annotation function for CVAT: boxes, masks or polygons of a running ConvMLP service; see README.md."""

from collections.abc import Iterator

import cvat_sdk.auto_annotation as cvataa
import PIL.Image
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import LabeledShapeRequest

from convmlp_client import Client
from convmlp_client.results import Detection, Segment

TASKS = {"rectangle": "detect", "mask": "segment"}
"""Whose default model answers where none is named."""


class ConvMLPFunction:
    """`shape`: rectangle or mask. `model`: a detector, or a segmentation model for masks; by default the service's."""

    def __init__(self, url: str, shape: str = "rectangle", model: str = "", api_key: str | None = None) -> None:
        self._client = Client(url, api_key=api_key)
        self._shape = shape
        found = [one for one in self._client.models() if (one.name == model if model else one.default)]
        fitting = [one for one in found if one.task == TASKS[shape] or (model and one.task == "detect")]
        if not fitting:
            raise ValueError(f"the service has no model {model} for {shape}s; `convmlp models list` shows its models")
        self._model = fitting[0]
        labels = [cvataa.label_spec(name, index, type=shape) for index, name in enumerate(self._model.labels)]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image) -> list[LabeledShapeRequest]:
        mask_format = "none" if self._shape == "rectangle" else "polygon" if context.conv_mask_to_poly else "rle"
        threshold = context.conf_threshold
        if self._model.task == "segment":
            segments = self._client.segment(image, model=self._model.name, mask_format=mask_format).segments
            return [shape for one in segments if one.confidence >= (threshold or 0) for shape in self._shapes(one)]
        limit = {} if threshold is None else {"score_threshold": threshold}
        found = self._client.detect(image, model=self._model.name, mask_format=mask_format, **limit)
        return [shape for one in found.detections for shape in self._shapes(one)]

    def _shapes(self, one: Detection | Segment) -> Iterator[LabeledShapeRequest]:
        if isinstance(one, Detection) and self._shape == "rectangle":
            yield cvataa.rectangle(one.index, [one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax])
        elif one.mask is None:
            raise ValueError(f"the model {self._model.name} has no masks; use `-p shape=str:rectangle`")
        elif isinstance(one.mask.data, str):
            yield cvataa.mask(one.index, encode_mask(one.mask.to_array()))
        else:
            yield from (cvataa.polygon(one.index, list(points)) for points in one.mask.data)


create = ConvMLPFunction
