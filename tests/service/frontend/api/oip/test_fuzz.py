"""Arbitrary bodies: each is either understood or a domain error."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ImageTooLarge
from model.types import Image
from service.errors import BadRequest
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from service.frontend.api.oip.grpc_codec import read_request as read_message
from service.frontend.api.oip.http_codec import json_length, read_request
from service.frontend.api.oip.protocol import InferRequest, images_of

MAX_IMAGES = 4
REFUSALS = (BadRequest, ImageTooLarge)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
sizes = st.integers(-2, 5) | st.integers(-(2**70), 2**70)
numbers = st.recursive(st.integers(-1, 256), lambda inner: st.lists(inner, max_size=4), max_leaves=16)
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "shared_memory_region", "other"]),
    st.integers(-2, 60) | json_values,
    max_size=2,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.just("image") | st.text(max_size=5),
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32", ""]),
        "shape": st.lists(sizes, max_size=5) | st.sampled_from([[1], [1, 1, 1, 3], [2, 1, 1, 3]]),
    },
    optional={"parameters": parameters, "data": numbers | json_values},
)
documents = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2)},
    optional={"id": json_values, "outputs": json_values, "parameters": json_values},
)


def understood(request: InferRequest) -> None:
    """The images of a request that was understood have the input's shape."""
    pictures = images_of(request.inputs, MAX_IMAGES)
    (tensor,) = request.inputs
    assert len(pictures) == tensor.shape[0] <= MAX_IMAGES
    for picture in pictures:
        if isinstance(picture, Image):
            assert picture.pixels.shape == tensor.shape[1:]


@settings(deadline=None, max_examples=150)
@given(documents | json_values, st.binary(max_size=60), st.integers(-3, 3) | st.none())
def test_http_bodies(document: Any, rest: bytes, shift: int | None) -> None:  # noqa: ANN401
    """JSON of any content, raw tensors, and a wrong length never raise anything but a domain error."""
    text = json.dumps(document).encode()
    with suppress(*REFUSALS):
        body = text + rest
        understood(read_request(body, json_length(None if shift is None else str(len(text) + shift), len(body))))


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=120), st.text(max_size=5) | st.integers(-1, 130).map(str) | st.none())
def test_http_bytes(body: bytes, length: str | None) -> None:
    """Any bytes and any header never raise anything but a domain error."""
    with suppress(*REFUSALS):
        understood(read_request(body, json_length(length, len(body))))


messages = st.builds(
    pb.ModelInferRequest,
    inputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferInputTensor,
            name=st.just("image") | st.text(max_size=5),
            datatype=st.sampled_from(["BYTES", "UINT8", "FP32", ""]),
            shape=st.lists(st.integers(-2, 5) | st.integers(-(2**63), 2**63 - 1), max_size=5),
            contents=st.none()
            | st.builds(
                pb.InferTensorContents,
                bytes_contents=st.lists(st.binary(max_size=5), max_size=3),
                uint_contents=st.lists(st.integers(0, 300), max_size=13),
                fp32_contents=st.lists(st.just(1.0), max_size=1),
            ),
        ),
        max_size=2,
    ),
    raw_input_contents=st.lists(st.binary(max_size=30), max_size=2),
    outputs=st.lists(st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=st.text(max_size=5)), max_size=2),
)


@settings(deadline=None, max_examples=150)
@given(messages)
def test_grpc_messages(message: pb.ModelInferRequest) -> None:
    """Any message of the protocol never raises anything but a domain error."""
    with suppress(*REFUSALS):
        understood(read_message(message))


@settings(deadline=None, max_examples=150)
@given(messages, st.data())
def test_damaged_grpc_messages(message: pb.ModelInferRequest, data: st.DataObject) -> None:
    """The same for messages with one damaged byte."""
    damaged = bytearray(message.SerializeToString())
    if damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(DecodeError, *REFUSALS):
        understood(read_message(pb.ModelInferRequest.FromString(bytes(damaged))))
