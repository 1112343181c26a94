#!/usr/bin/env bash
# inference-sdk 1.8.3 cannot send Pillow pictures with transparency or a palette.
#
# `infer` takes a Pillow picture and encodes it as JPEG in the picture's own mode, which Pillow refuses for RGBA, LA and P:
# many PNGs, and GIFs, as PIL.Image.open gives them. The error is Pillow's `OSError: cannot write mode RGBA as JPEG`, and no
# request is sent. The path of the same file works, because the file's bytes are sent; so does the picture after
# convert("RGB").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet inference-sdk==1.8.3 pillow==12.3.0
cat > ask.py <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import PIL.Image
from inference_sdk import InferenceConfiguration, InferenceHTTPClient

ANSWER = json.dumps({"image": {"width": 8, "height": 8}, "predictions": []}).encode()


class Peer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Peer)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = InferenceHTTPClient(f"http://127.0.0.1:{server.server_port}", api_key="key")
client.select_api_v0()
client.configure(InferenceConfiguration(api_key_transport="legacy"))
outcomes = {}
for mode in ("RGB", "L", "RGBA", "LA", "P"):
    PIL.Image.new("RGB", (8, 8), (10, 120, 200)).convert(mode).save("picture.png")
    client.infer("picture.png", model_id="pets/1")
    with PIL.Image.open("picture.png") as picture:
        client.infer(picture.convert("RGB"), model_id="pets/1")
        try:
            client.infer(picture, model_id="pets/1")
            outcomes[picture.mode] = "sent"
        except OSError as error:
            outcomes[picture.mode] = str(error)
server.shutdown()
print("inference-sdk", version("inference-sdk"), "with Pillow", version("pillow"), outcomes)
assert outcomes == {
    "RGB": "sent",
    "L": "sent",
    **{mode: f"cannot write mode {mode} as JPEG" for mode in ("RGBA", "LA", "P")},
}, "it converts the picture now"
PYTHON
venv/bin/python ask.py
