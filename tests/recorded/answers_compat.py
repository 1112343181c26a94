"""Requests to the APIs of other products below /compat, besides Hugging Face's."""

from __future__ import annotations

from typing import Any

from tests.recorded.answers import FORM, KEYS, NO_PICTURE, PICTURE, Http, b64, form, huge


def deepstack(name: str, path: str, *parts: tuple[str, bytes], **more: Any) -> Http:  # noqa: ANN401
    """A form to a path below DeepStack's /v1."""
    return Http(f"deepstack: {name}", f"POST /compat/deepstack/v1/{path}", form(*parts), FORM, **more)


def roboflow(name: str, path: str, body: bytes = b64(PICTURE).encode(), **more: Any) -> Http:  # noqa: ANN401
    """Base64 to a model's path."""
    return Http(f"roboflow: {name}", f"POST /compat/roboflow/{path}", body, URL_ENCODED, **more)


IMAGE = ("image", PICTURE)
URL_ENCODED = {"Content-Type": "application/x-www-form-urlencoded"}

COMPAT = [
    deepstack("detection", "vision/detection", IMAGE),
    deepstack("min_confidence", "vision/detection", ("api_key", b""), ("min_confidence", b"0.7"), IMAGE),
    deepstack("custom model", "vision/custom/fake_instances", IMAGE),
    deepstack("scene", "vision/scene", IMAGE),
    deepstack("list of models", "vision/custom/list"),
    Http("deepstack: update", "GET /compat/deepstack/v1/status/updateavailable"),
    deepstack("no picture", "vision/detection", ("image", NO_PICTURE)),
    deepstack("too many pixels", "vision/detection", ("image", huge())),
    deepstack("no image", "vision/detection", ("picture", PICTURE)),
    deepstack("two images", "vision/detection", IMAGE, IMAGE),
    deepstack("min_confidence of 40", "vision/detection", ("min_confidence", b"40"), IMAGE),
    deepstack("unknown model", "vision/custom/nothing", IMAGE),
    deepstack("no such endpoint", "vision/face", IMAGE),
    deepstack("no key", "vision/detection", IMAGE, service="strict"),
    deepstack("no worker", "vision/detection", IMAGE, service="alone"),
    roboflow("detection", "fake_detect/1"),
    roboflow("confidence in percent", "fake_detect/1?api_key=any&confidence=70&overlap=50"),
    roboflow("instances", "fake_instances/1"),
    roboflow("instances with RLE", "fake_instances/1?response_mask_format=rle"),
    roboflow("segmentation", "fake_segment/1"),
    roboflow("drawn", "fake_detect/1?format=image"),
    roboflow("drawn, and JSON", "fake_detect/1?format=image_and_json"),
    roboflow("no picture", "fake_detect/1", NO_PICTURE),
    roboflow("no body", "fake_detect/1", b""),
    roboflow("confidence of 101", "fake_detect/1?confidence=101"),
    roboflow("unknown model", "nothing/1"),
    roboflow("API v1", "infer/object_detection"),
    roboflow("URL", "fake_detect/1?image=https://example.org/cat.jpg", b""),
    roboflow("no key", "fake_detect/1", service="strict"),
    roboflow("key in the query", f"fake_detect/1?api_key={KEYS['alice']}&max_detections=1", service="strict"),
    roboflow("no worker", "fake_detect/1", service="alone"),
]
