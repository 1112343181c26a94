"""Prints what a client that openapi-python-client generated makes of the service's answers.

python openapi_python_client.py URL PICTURE OTHER_FILE
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from generated import Client
from generated.api.models import list_models
from generated.api.predictions import classify, detect, segment
from generated.models import ImageDocument, ImageForm, Problem
from generated.types import File

URL, PICTURE, OTHER = sys.argv[1:]
IMAGE = Path(PICTURE).read_bytes()

client = Client(base_url=URL, timeout=60)
# A body in each form that the document describes: bytes, JSON, multipart/form-data.
classified: Any = classify.sync(client=client, body=File(payload=io.BytesIO(IMAGE)))
detected: Any = detect.sync(client=client, body=ImageDocument(image=base64.b64encode(IMAGE).decode()))
form = ImageForm(image=[File(payload=io.BytesIO(IMAGE), file_name="picture.jpg")])
segmented: Any = segment.sync(client=client, body=form)
failed = classify.sync(client=client, body=File(payload=io.BytesIO(Path(OTHER).read_bytes())))
models: Any = list_models.sync(client=client)
assert isinstance(failed, Problem)
print(
    json.dumps(
        {
            "labels": [row.label for row in classified.results[0].labels],
            "detections": [row.label for row in detected.results[0].detections],
            "segments": [row.label for row in segmented.results[0].segments],
            "error": failed.detail,
            "models": [model.name for model in models.models],
        }
    )
)
