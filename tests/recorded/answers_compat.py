"""Requests to the APIs of other products below /compat, besides Hugging Face's."""

from __future__ import annotations

from typing import Any

from tests.recorded.answers import FORM, NO_PICTURE, PICTURE, Http, form, huge


def deepstack(name: str, path: str, *parts: tuple[str, bytes], **more: Any) -> Http:  # noqa: ANN401
    """A form to a path below DeepStack's /v1."""
    return Http(f"deepstack: {name}", f"POST /compat/deepstack/v1/{path}", form(*parts), FORM, **more)


IMAGE = ("image", PICTURE)

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
]
