"""Reads the images of a command: files, stdin, and what it downloads itself from the URLs that the user names."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

from convmlp_client.transport import connection_reason
from model.errors import ImageTooLarge, ImageUndecodable
from service.cli.inputs import MAX_READ_BYTES, ImageFile

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = 60.0
"""Of one download as a whole."""
MAX_REDIRECTS = 5


class ImageReader:
    """Use as an async context manager: connections are kept between downloads from one host.

    The command downloads, and not the service: it does so with every service, with `--local`, and for drawings, and it
    reaches what its user reaches.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_READ_BYTES) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._http: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def read(self, image: ImageFile) -> bytes:
        """The encoded bytes.

        Raises:
            ImageUndecodable: the file cannot be read, or the URL cannot be downloaded.
            ImageTooLarge: it has more bytes than any service accepts.
        """
        if not image.is_url:
            return image.read()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._download(image.path)
        except TimeoutError:
            raise ImageUndecodable(f"cannot be downloaded within {self._timeout_s:g} s") from None

    async def _download(self, url: str) -> bytes:
        import httpx2

        if self._http is None:
            self._http = httpx2.AsyncClient(
                follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=httpx2.Timeout(None)
            )
        data = bytearray()
        try:
            async with self._http.stream("GET", url) as response:
                if not response.is_success:
                    raise ImageUndecodable(f"cannot be downloaded: the server answers {response.status_code}")
                async for part in response.aiter_bytes():
                    data += part
                    if len(data) > self._max_bytes:
                        raise ImageTooLarge(f"has more than {self._max_bytes:,} bytes; name a smaller picture")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ImageUndecodable(f"cannot be downloaded: {connection_reason(error)}") from None
        return bytes(data)
