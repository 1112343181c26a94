"""Invalid requests, by the same cases over both transports: each is the client's error, with a clear message."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.service.frontend.api.oip.oip_client import (
    OipClient,
    OipFrontEnds,
    OipRequest,
    Refused,
    encoded,
    encoded_request,
    pixels_request,
)
from tests.service.frontend.rest_server import picture
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = picture()
GOOD = encoded_request("fake_classify", IMAGE)
INPUT_FORMS = "'image' is either BYTES of the shape [N] or [N, 1]"

BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"input": "picture"}, "the request's inputs are 'picture'; expected one: " + INPUT_FORMS),
    "unknown datatype": ({"datatype": "FP64"}, "has the datatype 'FP64'; " + INPUT_FORMS),
    "no datatype": ({"datatype": ""}, "has the datatype ''"),
    "bytes of two axes": ({"shape": [1, 2]}, "is BYTES of the shape [1, 2]; " + INPUT_FORMS),
    "no axis": ({"shape": []}, "is BYTES of the shape []"),
    "negative size": ({"shape": [-1]}, "has the shape [-1]; expected at most 8 sizes, none of them negative"),
    "many axes": ({"shape": [1] * 100}, "has the shape [1, 1, 1, 1, 1, 1, 1, 1, …]"),
    "no image": ({"shape": [0], "data": b""}, "is empty; send at least one image"),
    "too many images": ({"shape": [65]}, "the request has 65 images, at most 64 are accepted"),
    "absurdly many": ({"shape": [2**62]}, "images, at most 64 are accepted"),
    "fewer than the shape": ({"shape": [2]}, "its data has 1 elements, its shape needs 2"),
    "more than the shape": ({"data": encoded(IMAGE, IMAGE)}, "its data has 1 elements and more, its shape needs 1"),
    "a length beyond the end": ({"data": struct.pack("<I", 2**32 - 1) + IMAGE}, "has a length of 4,294,967,295 bytes"),
    "a length cut short": ({"data": b"\1\0"}, "element 0 is cut off after 2 bytes of its length"),
    "pixels without channels": ({"datatype": "UINT8", "shape": [1, 2, 2]}, "is UINT8 of the shape [1, 2, 2]"),
    "pixels with four channels": ({"datatype": "UINT8", "shape": [1, 2, 2, 4]}, "is UINT8 of the shape [1, 2, 2, 4]"),
    "channels first": ({"datatype": "UINT8", "shape": [1, 3, 20, 20]}, "is UINT8 of the shape [1, 3, 20, 20]"),
    "no pixels": ({"datatype": "UINT8", "shape": [1, 0, 2, 3], "data": b""}, "is UINT8 of the shape [1, 0, 2, 3]"),
    "too few pixels": (
        {"datatype": "UINT8", "shape": [1, 2, 2, 3], "data": bytes(11)},
        "its data has 11 elements, its shape [1, 2, 2, 3] needs 12",
    ),
    "too many pixels": (
        {"datatype": "UINT8", "shape": [2, 1, 1, 3], "data": bytes(7)},
        "its data has 7 elements, its shape [2, 1, 1, 3] needs 6",
    ),
}
BAD_SELECTIONS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown output": ({"outputs": ["logits"]}, 400, "has no output 'logits'; it has scores, indices, labels"),
    "output twice": ({"outputs": ["scores", "scores"]}, 400, "requested twice"),
    "unknown parameter": ({"parameters": {"top_q": 3}}, 422, "parameter 'top_q' does not apply to a model"),
    "parameter of another task": ({"parameters": {"score_threshold": 0.5}}, 422, "it takes top_k, timeout"),
    "out of range": ({"parameters": {"top_k": 0}}, 422, "'top_k' is 0; expected a whole number from 1 to 1000"),
    "a fraction": ({"parameters": {"top_k": 2.5}}, 422, "'top_k' is 2.5; expected a whole number"),
    "a truth": ({"parameters": {"top_k": True}}, 422, "'top_k' is True; expected a whole number"),
    "text": ({"parameters": {"top_k": "5"}}, 422, "'top_k' is '5'; expected a whole number"),
    "negative timeout": ({"parameters": {"timeout": -1}}, 422, "'timeout' is -1; expected a whole number of micro"),
    "text as timeout": ({"parameters": {"timeout": "soon"}}, 422, "'timeout' is 'soon'"),
}
BAD_DETECTOR_SELECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "beyond one": ({"parameters": {"score_threshold": 1.5}}, "expected a number from 0 to 1"),
    "unknown mask format": ({"parameters": {"mask_format": "bmp"}}, "expected one of rle, png, polygon, none"),
    "masks that are not wanted": (
        {"parameters": {"mask_format": "none"}, "outputs": ["masks"]},
        "'masks' is requested with the mask_format 'none'",
    ),
}


async def refusal(client: OipClient, request: OipRequest) -> Refused:
    with pytest.raises(Refused) as refused:
        await client.infer(request)
    return refused.value


@pytest.mark.parametrize("case", BAD_TENSORS)
async def test_bad_tensors(client: OipClient, case: str) -> None:
    """An invalid input is an error that gives the expected form."""
    changes, words = BAD_TENSORS[case]
    refused = await refusal(client, replace(GOOD, **changes))
    assert refused.status in (400, 413, "INVALID_ARGUMENT")
    assert words in refused.message
    assert (await client.infer(GOOD)).model == "fake_classify"


@pytest.mark.parametrize("case", BAD_SELECTIONS)
async def test_bad_selections(client: OipClient, case: str) -> None:
    """Unknown outputs and parameters are errors, and ranges are those of REST's query."""
    changes, status, words = BAD_SELECTIONS[case]
    refused = await refusal(client, replace(GOOD, **changes))
    assert refused.status in (status, "INVALID_ARGUMENT")
    assert words in refused.message


@pytest.mark.parametrize("case", BAD_DETECTOR_SELECTIONS)
async def test_bad_detector_selections(client: OipClient, case: str) -> None:
    """A threshold beyond 1, an unknown mask format, and masks both requested and excluded are errors."""
    changes, words = BAD_DETECTOR_SELECTIONS[case]
    refused = await refusal(client, encoded_request("fake_instances", IMAGE, **changes))
    assert refused.status in (422, "INVALID_ARGUMENT")
    assert words in refused.message


@pytest.mark.settings(max_image_mpx=1)
async def test_pixel_limit(fresh_oip: OipFrontEnds) -> None:
    """The limit of pixels applies to inputs of pixels as to files."""
    large = pixels_request("fake_classify", np.zeros((1, 1001, 1000, 3), np.uint8))
    for client in (fresh_oip.http, fresh_oip.rpc):
        refused = await refusal(client, large)
        assert refused.status in (413, "INVALID_ARGUMENT")
        assert "1,001,000 pixels" in refused.message


@pytest.mark.settings(max_request_bytes=100000)
async def test_answer_too_large(fresh_oip: OipFrontEnds) -> None:
    """A response has a limit of bytes, for one large image as for the padding of many small ones."""
    for images in ([picture(width=400, height=300)], [picture(width=1, height=300), picture(width=400, height=1)]):
        for client in (fresh_oip.http, fresh_oip.rpc):
            refused = await refusal(client, encoded_request("fake_segment", *images))
            assert refused.status in (413, "INVALID_ARGUMENT")
            assert "with the output 'label_map' the response would have more than 100,000 bytes" in refused.message
            slim = encoded_request("fake_segment", *images, outputs=["label_map_png", "areas"])
            assert len((await client.infer(slim)).outputs) == 2


async def test_timeout_of_the_request(fresh_oip: OipFrontEnds) -> None:
    """The parameter `timeout`, in microseconds, ends the wait for a busy device."""
    fresh_oip.worker.runner.unblocked.clear()
    for client in (fresh_oip.http, fresh_oip.rpc):
        refused = await refusal(client, replace(GOOD, parameters={"timeout": 500_000}))
        assert refused.status in (504, "DEADLINE_EXCEEDED")


@pytest.mark.settings(max_in_flight=2)
async def test_full_queue_fails_the_whole_request(fresh_oip: OipFrontEnds) -> None:
    """Where some images of a request find no room, the request fails, with the time to retry."""
    fresh_oip.worker.runner.unblocked.clear()
    for client in (fresh_oip.http, fresh_oip.rpc):
        refused = await refusal(client, encoded_request("fake_classify", IMAGE, IMAGE, IMAGE))
        assert refused.status in (503, "RESOURCE_EXHAUSTED")
        assert re.match(r"element \d of input 'image': 2 images are in", refused.message)


async def test_failed_requests_are_cancelled(fresh_oip: OipFrontEnds) -> None:
    """When one image of a request fails, its other images are cancelled."""
    fresh_oip.worker.runner.unblocked.clear()
    for client, front_end in ((fresh_oip.http, fresh_oip.pair.rest), (fresh_oip.rpc, fresh_oip.pair.rpc.front_end)):
        await refusal(client, encoded_request("fake_detect", IMAGE, IMAGE, b"no picture"))
        registry = front_end.registry
        await until(lambda registry=registry: registry.get_sample_value("convmlp_in_flight_requests") == 0)  # type: ignore[misc]
