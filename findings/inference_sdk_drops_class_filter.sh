#!/usr/bin/env bash
# inference-sdk 1.8.3 drops class_filter and class_agnostic_nms of its configuration with API v0.
#
# `InferenceConfiguration` takes both, and `infer` sends its other settings (confidence, overlap, max_detections) in the
# query string. These two are left out without an error or a warning, so a caller gets objects of all classes. With API v1
# both are in the body, and `infer_on_video` with v0 sends `class_filter`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet inference-sdk==1.8.3
cat > ask.py <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from urllib.parse import parse_qs, urlsplit

import numpy as np
from inference_sdk import InferenceConfiguration, InferenceHTTPClient

ANSWER = json.dumps({"image": {"width": 8, "height": 8}, "predictions": []}).encode()
sent = []


class Peer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        sent.append(parse_qs(urlsplit(self.path).query))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Peer)
threading.Thread(target=server.serve_forever, daemon=True).start()
configuration = InferenceConfiguration(
    confidence_threshold=0.5,
    iou_threshold=0.4,
    max_detections=7,
    class_filter=["dog"],
    class_agnostic_nms=True,
    api_key_transport="legacy",
)
client = InferenceHTTPClient(f"http://127.0.0.1:{server.server_port}", api_key="key")
client.select_api_v0()
client.configure(configuration)
client.infer(np.zeros((8, 8, 3), np.uint8), model_id="pets/1")
server.shutdown()
(query,) = sent
print("inference-sdk", version("inference-sdk"), "sends", query)
assert (query["confidence"], query["overlap"], query["max_detections"]) == (["0.5"], ["0.4"], ["7"])
dropped = {"class_filter", "classes", "class_agnostic_nms", "agnostic_nms"}
assert not dropped & set(query), "API v0 sends the filter now"
PYTHON
venv/bin/python ask.py
