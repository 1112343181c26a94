"""The body of a request over HTTP, decompressed where it was sent so."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from starlette.requests import Request

from model.errors import ImageTooLarge
from service.errors import BadRequest
from service.frontend.rest.body import read_body
from service.settings import Settings

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's own word for the format: gzip, or zlib's."""
PIECE_BYTES = 2**20


async def read_decompressed(request: Request, settings: Settings, take: Callable[[int], None]) -> bytes:
    """The whole body. `take` is told of the bytes that came, and of those that they become.

    Raises:
        BadRequest: a coding that is not known here, or data that is not of the coding.
        ImageTooLarge: more bytes than one request may have, as it came or decompressed.
        Overloaded: `take` found no room.
        ClientDisconnect: the client left before the end.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity" and coding not in WINDOW_BITS:
        raise BadRequest(f"the header Content-Encoding is {coding[:40]!r}; send gzip, deflate, or no coding")
    body = await read_body(request, settings, take)
    return body if coding == "identity" else await _decompressed(body, coding, settings.max_request_bytes, take)


async def _decompressed(body: bytes, coding: str, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """Piece by piece, for a few bytes may become very many."""
    decompressor = zlib.decompressobj(WINDOW_BITS[coding])
    pieces: list[bytes] = []
    total = at = 0
    rest = b""
    while not decompressor.eof:
        if not rest:
            rest = body[at : at + PIECE_BYTES]
            at += len(rest)
        try:
            piece = await asyncio.to_thread(decompressor.decompress, rest, PIECE_BYTES)
        except zlib.error:
            raise BadRequest(f"the body is not {coding} data, as its Content-Encoding says") from None
        if not rest and not piece and not decompressor.eof:
            raise BadRequest(f"the body's {coding} data ends too early; send it whole")
        rest = decompressor.unconsumed_tail
        total += len(piece)
        if total > max_bytes:
            raise ImageTooLarge(f"the request's body has more than {max_bytes:,} bytes when decompressed; send fewer")
        take(len(piece))
        pieces.append(piece)
    behind = len(decompressor.unused_data) + len(body) - at
    if behind:
        raise BadRequest(f"{behind:,} bytes follow the end of the body's {coding} data")
    return b"".join(pieces)
