"""Prints what DeepStack's SDK, and the library of its Home Assistant integration, make of the service's answers.

python deepstack_clients.py URL PICTURE OTHER_FILE
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import PIL.Image
from deepstack.core import DeepstackObject, DeepstackScene
from deepstack_sdk import Detection, SceneRecognition, ServerConfig

URL, PICTURE, OTHER = sys.argv[1:]
HEADS = "convmlp_pets_heads"
IMAGE = Path(PICTURE).read_bytes()


def rows_of(response: Any) -> list[dict[str, Any]]:  # noqa: ANN401  (the SDK's)
    return [vars(found) for found in response]


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:  # the SDK raises nothing more exact
        return str(error)
    raise AssertionError("no error")


config = ServerConfig(f"{URL}/compat/deepstack")
detection = Detection(config)
with tempfile.TemporaryDirectory() as folder, PIL.Image.open(PICTURE) as picture:
    drawn = Path(folder) / "drawn.jpg"
    detected = rows_of(detection.detectObject(PICTURE, output=str(drawn)))
    with PIL.Image.open(drawn) as opened:
        drawn_size = opened.size
    of_pillow = rows_of(detection.detectObject(picture, format="png"))
address = urlsplit(URL)
where = {"ip": address.hostname, "port": address.port}
print(
    json.dumps(
        {
            "detected": detected,
            "drawn_size": drawn_size,
            "of_pillow": of_pillow,
            "of_bytes": rows_of(detection.detectObject(IMAGE)),
            "of_an_array": rows_of(detection.detectObject(cv2.imread(PICTURE), format="png")),
            "custom": rows_of(Detection(config, name=HEADS).detectObject(IMAGE, min_confidence=0.99)),
            "scene": vars(SceneRecognition(config).recognizeScene(IMAGE)),
            "home_assistant": DeepstackObject(**where, min_confidence=0.4).detect(IMAGE),
            "home_assistant_custom": DeepstackObject(**where, custom_model=HEADS).detect(IMAGE),
            "home_assistant_scene": DeepstackScene(**where).recognize(IMAGE),
            "errors": [
                error_of(lambda: detection.detectObject(Path(OTHER).read_bytes())),
                error_of(lambda: Detection(config, name="nothing").detectObject(IMAGE)),
                error_of(lambda: DeepstackObject(**where, custom_model="nothing").detect(IMAGE)),
            ],
        }
    )
)
