"""Inference over both transports: inputs, and the outputs of each task."""

from __future__ import annotations

import io
import json
import re
import threading
import time

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from service.errors import DeadlineExceeded
from service.frontend.api.oip.inference import OFFLOAD_FROM_BYTES, offload
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

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools' decoder
]


def gradient(height: int = 60, width: int = 80) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 (H, W, 3), no two corners alike."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack((rows * 4, columns * 3, rows + columns), axis=2).astype(np.uint8)


def png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def test_labels_of_an_encoded_image(client: OipClient) -> None:
    """A classifier gives its best classes, each with score, index and name, and the image's size."""
    answer = await client.infer(encoded_request("fake_classify", picture(100), id="first"))
    assert (answer.model, answer.id) == ("fake_classify", "first")
    assert answer["scores"].tolist() == [[0.5, 0.25, 0.125, 0.0625, 0.03125]]
    assert answer["indices"].tolist() == [[100, 101, 102, 103, 104]]
    assert answer["labels"].tolist() == [[f"grey {level}".encode() for level in range(100, 105)]]
    assert answer["image_size"].tolist() == [[60, 80]]


@pytest.mark.parametrize("shape", [[1], [1, 1]])
async def test_both_shapes_of_encoded_images(client: OipClient, shape: list[int]) -> None:
    """Encoded images may have the shape [N] or [N, 1]."""
    answer = await client.infer(OipRequest("fake_classify", "BYTES", shape, encoded(picture(7))))
    assert answer["indices"][0, 0] == 7


@pytest.mark.parametrize("model", ["fake_classify", "fake_detect", "fake_segment", "fake_instances"])
async def test_pixels_and_their_lossless_file_get_the_same_answer(client: OipClient, model: str) -> None:
    """Pixels and a lossless file of them have the same answer."""
    pixels = gradient()
    of_pixels = await client.infer(pixels_request(model, pixels[None]))
    of_file = await client.infer(encoded_request(model, png(pixels)))
    assert of_pixels.outputs.keys() == of_file.outputs.keys()
    for name, values in of_file.outputs.items():
        np.testing.assert_array_equal(of_pixels[name], values, name)


async def test_batch_keeps_its_order(client: OipClient) -> None:
    """The images of a request have the same order in the outputs as in the input."""
    levels = [3, 200, 41, 90]
    answer = await client.infer(encoded_request("fake_classify", *map(picture, levels), parameters={"top_k": 1}))
    assert answer["indices"].tolist() == [[level] for level in levels]
    batch = np.stack([np.full((20, 30, 3), level, np.uint8) for level in levels])
    answer = await client.infer(pixels_request("fake_classify", batch, parameters={"top_k": 1}))
    assert answer["indices"].tolist() == [[level] for level in levels]


async def test_detections(client: OipClient) -> None:
    """A detector gives boxes in pixels, by descending score; without masks where the model has none."""
    answer = await client.infer(encoded_request("fake_detect", picture(100)))
    assert list(answer.outputs) == ["num_detections", "boxes", "scores", "indices", "labels", "image_size"]
    assert answer["num_detections"].tolist() == [[2]]
    assert answer["boxes"].tolist() == [[[0, 0, 40, 30], [20, 15, 80, 60]]]
    assert answer["labels"].tolist() == [[b"cat", b"dog"]]


@pytest.mark.parametrize(("threshold", "most", "found"), [(0.7, 100, 1), (0.0, 1, 1), (1, 100, 0)])
async def test_fewer_detections(client: OipClient, threshold: float, most: int, found: int) -> None:
    """Threshold and maximum apply, down to an answer without detections."""
    parameters = {"score_threshold": threshold, "max_detections": most}
    answer = await client.infer(encoded_request("fake_detect", picture(), parameters=parameters))
    assert answer["num_detections"].tolist() == [[found]]
    assert answer["boxes"].shape == (1, found, 4)
    assert answer["labels"].shape == (1, found)


async def test_masks_are_coco_run_lengths(client: OipClient) -> None:
    """By default a mask is COCO's JSON for pycocotools, of the image's size, and within its box."""
    answer = await client.infer(encoded_request("fake_instances", picture(), outputs=["boxes", "masks"]))
    assert list(answer.outputs) == ["boxes", "masks"]
    mask = coco.decode(json.loads(answer["masks"][0, 0]))
    assert mask.shape == (60, 80)
    assert mask[:30, :40].all()
    assert not mask[32:].any()


async def test_masks_as_png_or_polygons(client: OipClient) -> None:
    """`mask_format` selects run lengths, a PNG or polygons; `none` leaves the output out."""

    async def ask(mask_format: str) -> dict[str, object]:
        answer = await client.infer(
            encoded_request("fake_instances", picture(), parameters={"mask_format": mask_format})
        )
        return {name: values[0, 0] for name, values in answer.outputs.items()}

    masks = (await ask("png"))["masks"]
    assert isinstance(masks, bytes)
    with PIL.Image.open(io.BytesIO(masks)) as mask:
        assert (mask.size, mask.getpixel((5, 5)), mask.getpixel((79, 59))) == ((80, 60), 255, 0)
    polygons = (await ask("polygon"))["masks"]
    assert isinstance(polygons, bytes)
    assert json.loads(polygons)[0][:2] == [0, 0]
    assert "masks" not in await ask("none")


async def test_segments(client: OipClient) -> None:
    """A label map has each pixel's class, segments have their areas; the large outputs come only when named."""
    answer = await client.infer(encoded_request("fake_segment", picture(101)))
    assert list(answer.outputs) == [
        "label_map",
        "num_segments",
        "indices",
        "labels",
        "areas",
        "confidences",
        "image_size",
    ]
    assert answer["label_map"].dtype == np.uint8
    assert answer["label_map"].shape == (1, 60, 80)
    assert np.bincount(answer["label_map"].ravel()).tolist() == [2400, 0, 2400]
    assert answer["areas"].tolist() == [[2400, 2400]]
    np.testing.assert_allclose(answer["confidences"], [[0.9, 0.3]])
    assert answer["labels"].tolist() == [[b"background", b"dog"]]


async def test_label_map_as_png_and_segments_masks(client: OipClient) -> None:
    """The PNG holds the label map, and a segment's mask the pixels of its class."""
    answer = await client.infer(
        encoded_request("fake_segment", picture(100), outputs=["masks", "label_map_png", "label_map", "indices"])
    )
    with PIL.Image.open(io.BytesIO(answer["label_map_png"][0, 0])) as image:
        np.testing.assert_array_equal(np.asarray(image), answer["label_map"][0])
    for index, mask in zip(answer["indices"][0], answer["masks"][0], strict=True):
        np.testing.assert_array_equal(coco.decode(json.loads(mask)), answer["label_map"][0] == index)


async def test_the_confidence_of_each_pixel(client: OipClient) -> None:
    """It comes when named, as the picture's size; segments' confidences are its means."""
    request = encoded_request("fake_segment", picture(100), outputs=["confidence_map", "label_map"])
    answer = await client.infer(request)
    assert answer["confidence_map"].dtype == np.uint8
    assert answer["confidence_map"].shape == (1, 60, 80)
    for index, confidence in ((0, 0.9), (1, 0.45)):
        assert set(answer["confidence_map"][answer["label_map"] == index]) == {round(255 * confidence)}


async def test_a_threshold_needs_one_channel(client: OipClient) -> None:
    """It is refused with the reason, and out of its range."""
    for value, reason in ((0.3, "it has a channel for each of its 3 classes"), (1.0, "from 0.001 to 0.999")):
        with pytest.raises(Refused) as refused:
            await client.infer(encoded_request("fake_segment", picture(100), parameters={"threshold": value}))
        assert reason in refused.value.message


async def test_pictures_of_several_sizes(client: OipClient) -> None:
    """Smaller label maps are padded on the right and below; `image_size` gives the size without padding."""
    images = [picture(100, width=80, height=20), picture(101, width=30, height=60)]
    answer = await client.infer(encoded_request("fake_segment", *images))
    assert answer["label_map"].shape == (2, 60, 80)
    assert answer["image_size"].tolist() == [[20, 80], [60, 30]]
    for at, (height, width) in enumerate([(20, 80), (60, 30)]):
        real = answer["label_map"][at, :height, :width]
        assert not real[:, : width // 2].any()
        assert real[:, width // 2 :].all()
    assert not answer["label_map"][0, 20:].any()
    assert not answer["label_map"][1, :, 30:].any()


async def test_order_of_outputs(client: OipClient) -> None:
    """Only the named outputs come, in the order of the request."""
    answer = await client.infer(encoded_request("fake_classify", picture(), outputs=["labels", "scores"]))
    assert list(answer.outputs) == ["labels", "scores"]


async def test_parameters_without_effect(client: OipClient) -> None:
    """Parameters of priorities and sequences, and KServe's content type, are accepted and change nothing."""
    plain = await client.infer(encoded_request("fake_classify", picture(50)))
    sequence = {"sequence_id": 7, "sequence_start": True, "sequence_end": False}
    parameters = {"priority": 1, **sequence, "timeout": 9_000_000, "content_type": "base64"}
    answer = await client.infer(encoded_request("fake_classify", picture(50), parameters=parameters))
    assert {name: values.tolist() for name, values in answer.outputs.items()} == {
        name: values.tolist() for name, values in plain.outputs.items()
    }


async def test_one_bad_image_fails_its_request_and_no_other(oip: OipFrontEnds, client: OipClient) -> None:
    """An invalid image fails its request, which names the image's position; other requests are answered."""
    oip.worker.runner.unblocked.clear()
    images = [picture(1), picture(2), b"no picture", picture(4)]
    with pytest.raises(Refused, match=re.escape("element 2 of input 'image': the image format is not supported")):
        await client.infer(encoded_request("fake_classify", *images))
    oip.worker.runner.unblocked.set()
    answer = await client.infer(encoded_request("fake_classify", picture(9)))
    assert answer["indices"][0, 0] == 9


async def test_version(client: OipClient) -> None:
    """A model has the version 1 only, and a version in its name does not contradict that of the request."""
    assert (await client.infer(encoded_request("fake_classify", picture(), version="1"))).model == "fake_classify"
    with pytest.raises(Refused, match="has no version '2', only '1'") as refused:
        await client.infer(encoded_request("fake_classify", picture(), version="2"))
    assert refused.value.status in (404, "NOT_FOUND")
    with pytest.raises(Refused, match="names one version and the request another, '2'"):
        await client.infer(encoded_request("fake_classify@1", picture(), version="2"))


async def test_long_work_runs_in_a_thread() -> None:
    """Short work runs in the event loop, which is faster than a thread; long work does not block the loop."""
    here = threading.get_ident()
    later_s = time.monotonic() + 20
    assert await offload(threading.get_ident, OFFLOAD_FROM_BYTES, later_s) == here
    assert await offload(threading.get_ident, OFFLOAD_FROM_BYTES + 1, later_s) != here


async def test_long_work_keeps_the_deadline() -> None:
    """The error comes in time, though the thread goes on."""
    go = threading.Event()
    with pytest.raises(DeadlineExceeded):
        await offload(lambda: go.wait(20), OFFLOAD_FROM_BYTES + 1, time.monotonic() + 0.05)
    go.set()
