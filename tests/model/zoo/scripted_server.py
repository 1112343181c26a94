"""An HTTP server on the loopback that answers requests by a script, with faults."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OLD_DATE = "Wed, 01 Oct 2025 08:00:00 GMT"
LATER_DATE = "Wed, 01 Oct 2025 08:00:40 GMT"


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """How one request is answered. The default is correct: the whole file, or the requested range."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    """Added to the correct headers, or replacing them."""
    content: bytes | None = None
    """Instead of the server's file."""
    etag: str | None = '"one"'
    last_modified: str | None = None
    date: str | None = None
    """The Date header; None: now."""
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is respected."""
    length: int | None = None
    """The Content-Length header; None: the correct one."""
    framing: str = "length"
    """Or "chunked", or "none"."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send nothing after so many bytes, until the server stops."""


@dataclass(slots=True)
class Server:
    """`replies` answer the first requests, one each; `default` answers all later ones."""

    url: str
    content: bytes
    replies: list[ScriptedReply] = field(default_factory=list)
    default: ScriptedReply = field(default_factory=ScriptedReply)
    requests: list[Message] = field(default_factory=list)
    """The headers of each request."""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers["Range"] for headers in self.requests]

    def next_act(self, headers: Message) -> ScriptedReply:
        self.requests.append(headers)
        return self.replies.pop(0) if self.replies else self.default


@contextmanager
def scripted_server(content: bytes, *replies: ScriptedReply, certificate: Path | None = None) -> Iterator[Server]:
    """A server of one file. `certificate` is a PEM file with the key in it; with it, the server speaks HTTPS."""

    class Handler(_Handler):
        scripted: Server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            http.socket = context.wrap_socket(http.socket, server_side=True)
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up here, as they should
        scheme = "http" if certificate is None else "https"
        server = Server(f"{scheme}://127.0.0.1:{http.server_port}/weights.pth", content, list(replies))
        Handler.scripted = server
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            http.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: Server

    def do_GET(self) -> None:
        act = self.scripted.next_act(self.headers)
        content = self.scripted.content if act.content is None else act.content
        start = self._start(act)
        body = content[start:] if act.status in (200, 206) else b"no file\n"
        headers = {
            "Date": act.date or self.date_time_string(),
            "Connection": "close",
            "Content-Type": "application/octet-stream",
        }
        if act.framing == "length":
            headers["Content-Length"] = str(len(body) if act.length is None else act.length)
        elif act.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        if act.etag is not None:
            headers["ETag"] = act.etag
        if act.last_modified is not None:
            headers["Last-Modified"] = act.last_modified
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response_only(206 if start and act.status == 200 else act.status)
        for name, value in (headers | act.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self._send_body(act, body)

    def _start(self, act: ScriptedReply) -> int:
        asked = self.headers["Range"]
        if asked is None or not act.ranges or act.status != 200:
            return 0
        if act.if_range and self.headers["If-Range"] not in (act.etag, act.last_modified):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _send_body(self, act: ScriptedReply, body: bytes) -> None:
        end = next((stop for stop in (act.cut_after, act.stall_after) if stop is not None), len(body))
        if act.framing == "chunked":
            for begin in range(0, end, 1000):
                chunk = body[begin : min(begin + 1000, end)]
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            if end == len(body):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body[:end])
        self.wfile.flush()
        if act.stall_after is not None:
            self.scripted.stop.wait()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Disabled."""
