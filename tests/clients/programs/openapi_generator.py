"""Prints what a Python client that OpenAPI Generator generated makes of the service's answers.

python openapi_generator.py URL PICTURE OTHER_FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from openapi_client import ApiClient, ApiException, Configuration, ModelsApi, PredictionsApi

URL, PICTURE, OTHER = sys.argv[1:]
IMAGE = Path(PICTURE).read_bytes()
BYTES = "application/octet-stream"
"""This client takes JSON by default wherever an operation has it, and cannot make JSON of bytes."""

with ApiClient(Configuration(host=URL)) as client:
    predictions: Any = PredictionsApi(client)
    classified = predictions.classify(IMAGE, _content_type=BYTES).results[0]
    detected = predictions.detect(IMAGE, _content_type=BYTES).results[0]
    segmented = predictions.segment(IMAGE, _content_type=BYTES).results[0]
    try:
        predictions.classify(Path(OTHER).read_bytes(), _content_type=BYTES)
        error = ""
    except ApiException as failed:
        error = failed.data.detail
    models: Any = ModelsApi(client).list_models().models
print(
    json.dumps(
        {
            "labels": [row.label for row in classified.labels],
            "detections": [row.label for row in detected.detections],
            "segments": [row.label for row in segmented.segments],
            "error": error,
            "models": [model.name for model in models],
        }
    )
)
