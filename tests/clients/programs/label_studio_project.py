"""Label Studio's own SDK makes a project of pictures, connects a machine learning backend, and retrieves predictions.

Arguments: Label Studio's URL, a token, the backend's URL, a label config, and a picture. The tasks have the picture as
an upload, as a `data:` URL, and at a URL that leads nowhere. The last line is JSON: the backend's state, and for each
task its predictions; a mask is the box of its pixels in percent of the picture, and their number.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import requests
from label_studio_sdk import LabelStudio
from label_studio_sdk.converter.brush import decode_rle


def summary(region: dict[str, Any]) -> dict[str, Any]:
    value = dict(region["value"])
    if rle := value.pop("rle", None):
        height, width = region["original_height"], region["original_width"]
        mask = decode_rle(rle).reshape(height, width, 4)[..., 3] == 255
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        value["pixels"] = int(mask.sum())
        value["box"] = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return {"type": region["type"], "score": region["score"], "value": value}


def run(url: str, token: str, backend: str, label_config: str, picture: str) -> None:
    client = LabelStudio(base_url=url, api_key=token)
    project = client.projects.create(title="pictures", label_config=label_config)
    headers = {"Authorization": f"Token {token}"}
    content = Path(picture).read_bytes()
    upload = {"file": (Path(picture).name, content, "image/jpeg")}
    requests.post(
        f"{url}/api/projects/{project.id}/import", headers=headers, files=upload, timeout=60
    ).raise_for_status()
    encoded = base64.b64encode(content).decode()
    client.projects.import_tasks(
        id=project.id, request=[{"image": f"data:image/jpeg;base64,{encoded}"}, {"image": f"{url}/nothing.jpg"}]
    )
    connected = client.ml.create(url=backend, project=project.id, title="convmlp")
    for _ in range(2):
        requests.post(
            f"{url}/api/dm/actions?id=retrieve_tasks_predictions&project={project.id}",
            headers=headers,
            json={"selectedItems": {"all": True, "excluded": []}},
            timeout=120,
        ).raise_for_status()
    tasks = []
    for task in sorted(client.tasks.list(project=project.id), key=lambda task: task.id):
        predictions = client.predictions.list(task=task.id)
        tasks.append(
            [
                {"model_version": one.model_version, "regions": [summary(region) for region in one.result]}
                for one in predictions
            ]
        )
    print(json.dumps({"state": connected.readable_state, "version": connected.model_version, "tasks": tasks}))


run(*sys.argv[1:])
