"""CVAT's unmodified command line annotates a task of one picture by examples/cvat, at a server that this program plays.

Arguments: the function's file, the picture, and further ones of `cvat-cli task auto-annotate`. The last line is JSON of
the annotations that the command line sends.
"""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
import zipfile
from typing import Any

import PIL.Image
from cvat_cli.__main__ import main

VERSION = "2.80.0"
NOW = "2026-01-01T00:00:00Z"
LABELS = ("dog", "cat")
FIRST_LABEL_ID = 70


def task() -> dict[str, Any]:
    return {
        "id": 1,
        "size": 1,
        "organization": None,
        "project_id": None,
        "mode": "annotation",
        "created_date": NOW,
        "updated_date": NOW,
        "segment_size": 1,
        "data_chunk_size": 36,
        "data_compressed_chunk_type": "imageset",
        "data_original_chunk_type": "imageset",
        "dimension": "2d",
        "labels": {"url": "http://127.0.0.1/"},
        "jobs": {"count": 1, "completed": 0, "validation": 0, "url": "http://127.0.0.1/"},
    }


def labels() -> dict[str, Any]:
    rows = [
        {"id": FIRST_LABEL_ID + at, "name": name, "type": "any", "attributes": [], "sublabels": [], "has_parent": False}
        for at, name in enumerate(LABELS)
    ]
    return {"count": len(rows), "next": None, "previous": None, "results": rows}


def data_meta(width: int, height: int) -> dict[str, Any]:
    frame = {"width": width, "height": height, "name": "picture", "has_related_context": False, "related_files": 0}
    return {
        "chunk_size": 36,
        "size": 1,
        "chunks_updated_date": NOW,
        "included_frames": None,
        "image_quality": 100,
        "start_frame": 0,
        "stop_frame": 0,
        "frame_filter": "",
        "deleted_frames": [],
        "frames": [frame],
    }


def chunk(picture: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("000000.jpg", picture)
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Answers what the command line asks for; `annotations` are those that it sent."""

    def __init__(self, picture: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.annotations: list[dict[str, Any]] = []
        width, height = PIL.Image.open(io.BytesIO(picture)).size
        self.answers: dict[str, object] = {
            "/api/auth/login": {"key": "any"},
            "/api/server/about": {
                "name": "CVAT",
                "description": "",
                "version": "2.80.0",
                "logo_url": "",
                "subtitle": "",
            },
            "/api/tasks/1": task(),
            "/api/labels": labels(),
            "/api/tasks/1/data/meta": data_meta(width, height),
            "/api/tasks/1/data": chunk(picture),
            "/api/tasks/1/annotations": {"version": 1, "tags": [], "shapes": [], "tracks": []},
        }


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].rstrip("/")
        if self.command == "PATCH":
            self.server.annotations.append(json.loads(body))
        answer = self.server.answers[path]
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Set-Cookie", "sessionid=any")
        self.send_header("Set-Cookie", "csrftoken=any")
        self.send_header("Content-Type", "application/zip" if isinstance(answer, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def run(function: str, picture: str, *more: str) -> None:
    with open(picture, "rb") as file, Server(file.read()) as server:  # noqa: PTH123
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = (
            "--server-host",
            "http://127.0.0.1",
            "--server-port",
            str(server.server_address[1]),
            "--auth",
            "me:secret",
        )
        status = main([*at, "task", "auto-annotate", "1", "--function-file", function, *more])
        server.shutdown()
        print(json.dumps(server.annotations))
    sys.exit(status)


run(*sys.argv[1:])
