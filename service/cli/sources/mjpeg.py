"""MJPEG over HTTP, as cameras and mjpg-streamer send it: multipart/x-mixed-replace, a JPEG in each part.

There is no standard of it but RFC 2046, and cameras differ from that: in the dashes of the boundary, and in whether a
part has a Content-Length. With one a frame is complete at its last byte, without one when the next boundary comes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Iterator

import httpx2

from convmlp_client.transport import connection_reason
from service.cli.sources.frame import Frame, SourceLost, shown

MEDIA_TYPE = "multipart/x-mixed-replace"
MAX_HEAD_BYTES = 16 * 2**10
"""Of the headers of a part, and of what stands before its boundary."""
MAX_FRAME_BYTES = 32 * 2**20
SILENCE_S = 15.0
"""A camera that sends nothing for so long is lost."""
CONNECT_S = 10.0
END_OF_HEAD = b"\r\n\r\n"


class MjpegSource:
    """A camera's MJPEG address. A user and a password in the URL are sent where the camera asks for them."""

    is_live = resumes = True

    def __init__(self, url: str) -> None:
        self._url = httpx2.URL(url)
        self._shown = shown(url)

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """Ends at the closing boundary. Raises SourceLost."""
        timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S)
        url = self._url.copy_with(userinfo=b"")
        auth = _CameraAuth(self._url.username, self._url.password) if self._url.userinfo else None
        try:
            async with (
                httpx2.AsyncClient(timeout=timeout, follow_redirects=True) as client,
                client.stream("GET", url, auth=auth) as response,
            ):
                parser = MjpegParser(self._boundary(response))
                async for chunk in response.aiter_bytes():
                    for picture in parser.feed(chunk):
                        yield Frame(picture, time.time())
                    if parser.is_closed:
                        return
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise SourceLost(f"{self._shown}: {_reason(error)}") from None
        except ValueError as error:
            raise SourceLost(f"{self._shown}: {error}") from None
        raise SourceLost(f"{self._shown}: the camera ended the connection")

    def _boundary(self, response: httpx2.Response) -> bytes:
        if not response.is_success:
            raise SourceLost(f"{self._shown}: answers {response.status_code} {response.reason_phrase}")
        content_type = response.headers.get("content-type", "")
        kind, *parameters = [part.strip() for part in content_type.split(";")]
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        boundary = values.get("boundary", "").strip('"').encode("latin-1")
        if kind.lower() != MEDIA_TYPE or not boundary:
            raise SourceLost(
                f"{self._shown}: answers Content-Type {content_type[:80]!r}; expected {MEDIA_TYPE} with a boundary"
            )
        return boundary


class MjpegParser:
    """Finds the parts of a stream: `feed` it the bytes as they come. `is_closed`: the closing boundary was there."""

    def __init__(self, boundary: bytes) -> None:
        # Some cameras put the delimiter's dashes into the parameter, and no further ones before it.
        self._delimiter = b"--" + boundary.removeprefix(b"--")
        self._buffer = bytearray()
        self._searched = 0
        """Bytes of the buffer in which there is no delimiter."""
        self._in_part = False
        self._length: int | None = None
        self.is_closed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pictures that are complete with these bytes.

        Raises:
            ValueError: no part begins, or one has too many bytes.
        """
        self._buffer += data
        while not self.is_closed:
            if not self._in_part and not self._begin_part():
                return
            body = self._take_body()
            if body is None:
                return
            if body:
                yield body

    def _begin_part(self) -> bool:
        """Take the delimiter and the headers of the next part. Returns whether they are there."""
        start = self._buffer.find(self._delimiter)
        if start >= 0:
            after = start + len(self._delimiter)
            if self._buffer[after : after + 2] == b"--" and not self._buffer[after + 2 : after + 3].strip(b"\r\n"):
                self.is_closed = True
                return False
            end = self._buffer.find(END_OF_HEAD, after)
            if 0 <= end <= start + MAX_HEAD_BYTES:
                self._length = _content_length(bytes(self._buffer[after:end]))
                del self._buffer[: end + len(END_OF_HEAD)]
                self._searched, self._in_part = 0, True
                return True
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise ValueError("what it sends has no parts between its boundaries")
        return False

    def _take_body(self) -> bytes | None:
        """The body of the part, or None where it is not complete yet."""
        if self._length is not None:
            end = self._length if len(self._buffer) >= self._length else -1
        else:
            end = self._buffer.find(self._delimiter, self._searched)
            self._searched = max(0, len(self._buffer) - len(self._delimiter))
        if max(end, self._length or 0, len(self._buffer) if end < 0 else 0) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame has more than {MAX_FRAME_BYTES:,} bytes")
        if end < 0:
            return None
        body = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._in_part = False
        return body if self._length is not None else body.removesuffix(b"\r\n")


class _CameraAuth(httpx2.Auth):
    """Answers a challenge of Digest or of Basic, whichever comes."""

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        response = yield request
        if response.status_code != httpx2.codes.UNAUTHORIZED:
            return
        is_digest = response.headers.get("www-authenticate", "").lower().startswith("digest")
        method = httpx2.DigestAuth if is_digest else httpx2.BasicAuth
        yield from method(self._user, self._password).auth_flow(request)


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def _reason(error: Exception) -> str:
    match error:
        case httpx2.TimeoutException():
            return f"nothing came for {SILENCE_S:g} s"
        case httpx2.ConnectError():
            return f"cannot connect: {connection_reason(error)}"
        case _:
            return "the connection broke"
