"""The code matches the contract: it covers everything in vision.proto."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from convmlp.v1 import vision_pb2 as pb
from model.bundle import Accuracy
from model.postprocess.masks import MaskFormat
from model.types import Segment, SegmentResult, Size, Task
from service.errors import BadParameter
from service.frontend.api.vision.convert import MASK_FORMATS, METHODS, TASKS, read_params, response_of
from service.frontend.api.vision.servicer import accuracy_of
from service.frontend.core.parameters import MAX_CLASS_NAME, MAX_CLASSES


def test_every_prediction_of_the_contract_is_answered() -> None:
    """The table of methods and the contract's service have the same methods and messages."""
    service = pb.DESCRIPTOR.services_by_name["Vision"]
    expected = {}
    for method in METHODS:
        for name, streams in ((method.name, False), (f"{method.name}Stream", True)):
            expected[name] = (method.request.DESCRIPTOR, method.response.DESCRIPTOR, streams, streams)
    declared = {
        method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
        for method in service.methods
    }
    analyses = (pb.AnalyzeRequest.DESCRIPTOR, pb.AnalyzeResponse.DESCRIPTOR)
    assert declared.pop("Analyze") == (*analyses, False, False)
    assert declared.pop("AnalyzeStream") == (*analyses, True, True)
    assert declared.pop("ListModels")[:2] == (pb.ListModelsRequest.DESCRIPTOR, pb.ListModelsResponse.DESCRIPTOR)
    assert declared == expected


def test_every_enum_value_has_its_meaning() -> None:
    """Mask formats and tasks of the contract and of the code correspond one to one."""
    assert set(MASK_FORMATS) == set(pb.MaskFormat.values())
    assert set(MASK_FORMATS.values()) - {None} == set(MaskFormat)
    for name, value in pb.MaskFormat.items():
        assert name == f"MASK_FORMAT_{(MASK_FORMATS[value] or 'unspecified').upper()}"
    assert {task: pb.Task.Name(value) for task, value in TASKS.items()} == {
        task: f"TASK_{task.upper()}" for task in Task
    }


def test_a_threshold_of_zero() -> None:
    """A threshold of 0 returns everything; without one the model's own applies."""
    assert read_params(pb.DetectRequest(score_threshold=0)).params.score_threshold == 0
    assert read_params(pb.DetectRequest()).params.score_threshold is None


@pytest.mark.parametrize("kind", [pb.DetectRequest, pb.SegmentRequest])
def test_no_masks_means_none_are_made(kind: type[pb.DetectRequest | pb.SegmentRequest]) -> None:
    """With MASK_FORMAT_NONE the network computes no masks."""
    asked = read_params(kind(mask_format=pb.MASK_FORMAT_NONE))
    assert (asked.params.masks, asked.mask_format) == (False, MaskFormat.NONE)
    assert read_params(kind()).params.masks


@pytest.mark.parametrize("kind", [pb.DetectRequest, pb.SegmentRequest])
def test_names_of_classes_are_bounded(kind: type[pb.DetectRequest | pb.SegmentRequest]) -> None:
    """Parameters are kept for requests that repeat them, so a message cannot fill memory with long names."""
    longest = "a" * MAX_CLASS_NAME
    assert read_params(kind(classes=[longest])).classes == (longest,)
    for classes in ([f"{longest}a"], ["a"] * (MAX_CLASSES + 1), [""]):
        with pytest.raises(BadParameter) as caught:
            read_params(kind(classes=classes))
        assert caught.value.field == "classes"


def test_label_maps_beyond_256_classes_are_16_bit() -> None:
    """A label map with class indices above 255 is a 16-bit PNG."""
    label_map = np.full((4, 6), 300, np.uint16)
    result = SegmentResult(Size(4, 6), label_map, (Segment("far", 300, 24, 0.5),))
    response = response_of(result, MaskFormat.NONE, label_map=True)
    assert isinstance(response, pb.SegmentResponse)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(response.label_map_png))), label_map)


def test_accuracy() -> None:
    """A model's measured accuracy is in its message."""
    received = accuracy_of(Accuracy(metrics={"top1": 0.5}, measured_on="held-out pets"))
    assert received is not None
    assert (dict(received.metrics), received.measured_on) == ({"top1": 0.5}, "held-out pets")
