"""An object store as far as reading needs one: S3's listing, heads and ranges of objects, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ETAG = '"0123456789abcdef0123456789abcdef"'
DATE = "2026-01-01T00:00:00.000Z"
HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


class ObjectStore(ThreadingHTTPServer):
    """`objects`: by bucket and key, `BUCKET/KEY`. `broken`: it answers 500 to all requests for objects."""

    daemon_threads = True

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = objects
        self.broken = False
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStore

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests += 1
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query)
        if "list-type" in query:
            self._send(200, self._listing(path.rstrip("/"), query.get("prefix", [""])[0]), with_body)
        elif self.server.broken:
            self._send(500, b"", with_body)
        elif path not in self.server.objects:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", with_body)
        else:
            data, wanted = self.server.objects[path], self.headers.get("Range")
            if wanted is None:
                self._send(200, data, with_body)
            else:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last) + 1]
                self._send(206, part, with_body, f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")

    def _listing(self, bucket: str, prefix: str) -> bytes:
        found = [
            (name.partition("/")[2], data)
            for name, data in self.server.objects.items()
            if name.startswith(f"{bucket}/")
        ]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{ETAG}</ETag>"
            f"<LastModified>{DATE}</LastModified></Contents>"
            for key, data in found
            if key.startswith(prefix)
        )
        return (
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ).encode()

    def _send(self, status: int, body: bytes, with_body: bool, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", ETAG)
        self.send_header("Last-Modified", HTTP_DATE)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def object_store(objects: Mapping[str, bytes]) -> Iterator[ObjectStore]:
    with ObjectStore(objects) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
