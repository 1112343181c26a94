"""Prints what Roboflow's `inference_sdk` makes of the service's answers.

python inference_sdk_client.py URL PICTURE OTHER_FILE
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import PIL.Image
from inference_sdk import InferenceConfiguration, InferenceHTTPClient
from inference_sdk.http.errors import HTTPCallErrorError

URL, PICTURE, OTHER = sys.argv[1:]
HEADS, BREED, OUTLINE = "convmlp_pets_heads/1", "convmlp_pets_breed/1", "convmlp_pets_outline/1"
KEY = "0123456789abcdef"

warnings.simplefilter("ignore")  # about its own default for the key


def client_of(**configuration: Any) -> InferenceHTTPClient:  # noqa: ANN401
    client = InferenceHTTPClient(api_url=f"{URL}/compat/roboflow", api_key=KEY)
    client.select_api_v0()
    return client.configure(InferenceConfiguration(**configuration))


def error_of(client: InferenceHTTPClient, model: str, image: str) -> list[Any]:
    try:
        client.infer(image, model_id=model)
    except HTTPCallErrorError as error:
        return [error.status_code, error.api_message]
    raise AssertionError("no error")


client = client_of()
text = base64.b64encode(Path(PICTURE).read_bytes()).decode()
with PIL.Image.open(PICTURE) as picture:
    small = picture.resize((picture.width // 2, picture.height // 2))
drawn = client_of(format="image").infer(text, model_id=HEADS)["visualization"]
with PIL.Image.open(io.BytesIO(base64.b64decode(drawn))) as opened:
    visualization = [opened.format, *opened.size]
folder = Path(PICTURE).parent
print(
    json.dumps(
        {
            "detected": client.infer(text, model_id=HEADS),
            "asynchronous": asyncio.run(client.infer_async(text, model_id=HEADS)),
            "of_a_path": client.infer(PICTURE, model_id=HEADS),
            "of_several": client.infer([text, small], model_id=HEADS),
            "of_a_folder": [found for _, _, found in client.infer_on_stream(str(folder), model_id=HEADS)],
            "scaled_down": client_of(client_downsizing_disabled=False, default_max_input_size=200).infer(
                PICTURE, model_id=HEADS
            ),
            "confident": client_of(confidence_threshold=0.99, iou_threshold=0.5, max_detections=1).infer(
                text, model_id=HEADS
            ),
            "by_header": client_of(api_key_transport="header").infer(text, model_id=HEADS),
            "classified": client.infer(text, model_id=BREED),
            "segmented": client.infer(text, model_id=OUTLINE),
            "visualization": visualization,
            "errors": [
                error_of(client, HEADS, base64.b64encode(Path(OTHER).read_bytes()).decode()),
                error_of(client, "nothing/1", text),
            ],
        }
    )
)
