#!/usr/bin/env bash
# Label Studio 1.23.2: two surprises when a machine learning backend is connected that runs on a private network.
#
# 1. ML_BLOCK_LOCAL_IP=false allows backends at private addresses. /health and /setup of the backend succeed, the backend is made
#    and is used from then on, but the request that makes it is answered with 403. After the backend Label Studio makes a webhook at
#    its address, and that check ignores the setting; nothing takes the backend back.
# 2. /setup gets the access token of the project's owner, for the files that tasks name. By default Label Studio refuses that token
#    itself: it is a legacy one, and a new organization has these turned off. The SDK's `get_local_path` sends it nevertheless.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install label-studio==1.23.2
export PORT=${PORT:-18377} LABEL_STUDIO_BASE_DATA_DIR="$folder/data"
export ML_BLOCK_LOCAL_IP=false COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false
"$folder/venv/bin/label-studio" start --no-browser --port "$PORT" --username me@example.com --password a-long-secret \
  >"$folder/log" 2>&1 &
"$folder/venv/bin/python" - <<'PYTHON'
import http.server
import json
import os
import re
import threading
import time
from importlib.metadata import version

import requests

URL = f"http://127.0.0.1:{os.environ['PORT']}"
seen = {}


class Backend(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        seen[self.path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"model_version": "1"})

    def do_GET(self):
        self.answer({"status": "UP"})

    def answer(self, document):
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def started():
    try:
        return requests.get(f"{URL}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


until = time.monotonic() + 900  # it makes its database first
while not started():
    assert time.monotonic() < until
    time.sleep(1)
backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
threading.Thread(target=backend.serve_forever, daemon=True).start()

user = requests.Session()
field = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', user.get(f"{URL}/user/login/").text)[1]
form = {"csrfmiddlewaretoken": field, "email": "me@example.com", "password": "a-long-secret"}
user.post(f"{URL}/user/login/", data=form, headers={"Referer": f"{URL}/user/login/"}).raise_for_status()
user.headers["X-CSRFToken"] = user.cookies["csrftoken"]
config = '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="a"/></Choices></View>'
project = user.post(f"{URL}/api/projects/", json={"title": "project", "label_config": config}).json()["id"]
address = f"http://127.0.0.1:{backend.server_address[1]}"
made = user.post(f"{URL}/api/ml/", json={"project": project, "url": address, "title": "backend"})
backends = user.get(f"{URL}/api/ml/?project={project}").json()
print("label-studio", version("label-studio"))
print("1. the request:", made.status_code, made.json()["detail"])
print("   the backend:", [(one["url"] == address, one["readable_state"]) for one in backends])
token = seen["/setup"]["access_token"]
refused = requests.get(f"{URL}/api/projects/", headers={"Authorization": f"Token {token}"})
print("2. with the token of /setup:", refused.status_code, refused.json()["detail"])
assert made.status_code == 403, "the webhook is made, or not checked, now"
assert len(backends) == 1, "the backend is taken back now"
assert refused.status_code == 401, "the token is accepted now"
PYTHON
