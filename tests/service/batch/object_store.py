"""An object store as far as a job needs one: S3's listing, heads and ranges of objects, and uploads, over HTTP."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ETAG = '"0123456789abcdef0123456789abcdef"'
DATE = "2026-01-01T00:00:00.000Z"
HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


class ObjectStore(ThreadingHTTPServer):
    """`objects`: by bucket and key, `BUCKET/KEY`. `broken`: it answers 500 to all requests for objects; `full`: to all
    that write. `on_object` is called with the name of each object that has been written."""

    daemon_threads = True

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = dict(objects)
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.broken = self.full = False
        self.on_object: Callable[[str], None] = lambda _: None
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"  # clients wait for its `100 Continue` before they send a body

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_PUT(self) -> None:
        name, query, body = self._request()
        if self.server.full:
            self._send(500, b"", with_body=True)
            return
        if "partNumber" in query:
            self.server.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self._store(name, body)
        self._send(200, b"", with_body=True)

    def do_POST(self) -> None:
        name, query, _ = self._request()
        if self.server.full:
            self._send(500, b"", with_body=True)
        elif "uploads" in query:
            upload = str(len(self.server.uploads))
            self.server.uploads[upload] = {}
            self._send_xml(
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
        else:
            parts = self.server.uploads[query["uploadId"][0]]
            self._store(name, b"".join(parts[number] for number in sorted(parts)))
            self._send_xml(f"<CompleteMultipartUploadResult><ETag>{ETAG}</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        name, _, _ = self._request()
        self.server.objects.pop(name, None)
        self._send(204, b"", with_body=False)

    def _request(self) -> tuple[str, dict[str, list[str]], bytes]:
        """The object's name, the query and the body."""
        self.server.requests += 1
        parts = urlsplit(self.path)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = _read_chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "aws-chunked":
            body = _read_chunks(io.BytesIO(body))
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True), body

    def _store(self, name: str, body: bytes) -> None:
        self.server.objects[name] = body
        self.server.on_object(name)

    def _send_xml(self, text: str) -> None:
        self._send(200, text.encode(), with_body=True)

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


def _read_chunks(body: BufferedIOBase) -> bytes:
    """The data of a body in chunks, each behind its size in hexadecimal, and with a line break at its end."""
    data = b""
    while size := int(body.readline().partition(b";")[0], 16):
        data += body.read(size)
        body.readline()
    while body.readline().strip():
        pass  # trailers
    return data


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
