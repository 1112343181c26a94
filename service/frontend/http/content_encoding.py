"""Compressed bodies: Content-Encoding and Accept-Encoding (RFC 9110, sections 8.4 and 12.5.3).

A request's body is decoded chunk by chunk as it arrives. The decoded bytes are counted as they grow, so that a small
body which decodes to a huge one costs no more than the limit of a body. docs/decisions/0010-content-encodings.md has
why there are no further codings.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Iterable

from model.errors import ImageTooLarge
from service.errors import BadRequest, UnsupportedEncoding

FASTEST = 1
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, FASTEST, mtime=0),
    "deflate": lambda data: zlib.compress(data, FASTEST),
}
"""By coding, the preferred first. `deflate` is zlib's format (RFC 9110, section 8.4.1.2)."""
CODINGS = tuple(ENCODERS)
GZIP, ZLIB, RAW = 31, 15, -15
"""What zlib calls the formats: `deflate` is zlib's, and some clients send it without zlib's header."""
GZIP_START = 0x1F
"""The first byte of each member of a gzip stream."""
MAX_CODINGS = 2
"""Of one body. Each is a pass over at most the limit of a body."""
MAX_MEMBERS = 4096
"""Of one gzip stream (RFC 1952, section 2.2): each takes some microseconds, however few bytes it has."""
PIECE_BYTES = 2**18
"""Decoded at a time by a thread."""
SHORT_BYTES, SHORT_PIECE_BYTES = 2**12, 2**16
"""A chunk of no more bytes is decoded without a thread up to so many: 0.2 ms; to reach a thread takes 0.1 ms."""


def decoder_of(headers: Iterable[str], max_bytes: int, take: Callable[[int], None]) -> BodyDecoder | None:
    """The decoder for the values of Content-Encoding; None for `identity` alone. `take` gets each decoded length.

    Raises:
        UnsupportedEncoding: a coding is unknown, or there are too many.
    """
    names = [name for header in headers for part in header.split(",") if (name := part.strip().lower())]
    codings = [name.removeprefix("x-") for name in names if name != "identity"]
    for name in codings:
        if name not in CODINGS:
            raise UnsupportedEncoding(
                f"the body's Content-Encoding is {name[:40]!r}; send it as gzip, as deflate, or without one"
            )
    if len(codings) > MAX_CODINGS:
        raise UnsupportedEncoding(f"the body has {len(codings)} content codings; at most {MAX_CODINGS} are decoded")
    return BodyDecoder(codings, max_bytes, take) if codings else None


class BodyDecoder:
    """Decodes one body: `feed` it the chunks, then call `finish`. The codings are in the order of their application."""

    def __init__(self, codings: Iterable[str], max_bytes: int, take: Callable[[int], None]) -> None:
        self._stages = [_Stage(coding, max_bytes) for coding in reversed([*codings])]
        self._take = take
        self._chunk = b""
        self.nbytes = 0
        """Decoded so far."""

    async def feed(self, chunk: bytes, use: Callable[[bytes], object]) -> None:
        """Decode the body's next bytes; `use` gets each piece of what they decode to.

        Raises:
            BadRequest: the data is not of the coding.
            ImageTooLarge: it decodes to more than `max_bytes`.
            ConvMLPError: as `take` and `use`.
        """
        self._chunk = chunk
        last = len(self._stages) - 1
        is_short = len(chunk) <= SHORT_BYTES
        while self._chunk or any(stage.has_more for stage in self._stages):
            if is_short:
                piece = self._read(last, SHORT_PIECE_BYTES)
                is_short = False
            else:
                piece = await asyncio.to_thread(self._read, last, PIECE_BYTES)
            self._take(len(piece))
            self.nbytes += len(piece)
            use(piece)

    def finish(self) -> None:
        """The body has ended. Raises BadRequest where its data has not."""
        for stage in self._stages:
            if not stage.is_whole:
                raise BadRequest(f"the body's {stage.coding} data is truncated; send it whole")

    def _read(self, index: int, max_length: int) -> bytes:
        """At most `max_length` bytes that the stage at `index` decodes to; none where it needs the next chunk."""
        stage = self._stages[index]
        while True:
            if not stage.has_more:
                if index:
                    stage.data = self._read(index - 1, PIECE_BYTES)
                else:
                    stage.data, self._chunk = self._chunk, b""
                if not stage.data:
                    return b""
            if piece := stage.decode(max_length):
                return piece


class _Stage:
    """One coding of a body. `data` is what it has still to decode."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        self.coding = coding
        self.data = b""
        self._max_bytes = max_bytes
        self._total = 0
        self._inflater: zlib._Decompress | None = None
        self._head = b""
        """The first byte of `deflate`, before the second one has come."""
        self._is_full = False
        self._members = 0

    @property
    def has_more(self) -> bool:
        """Whether `decode` can return bytes without more data."""
        return bool(self.data) or self._is_full

    @property
    def is_whole(self) -> bool:
        """Whether the data has ended; a body without any has, too."""
        return not self._head and (self._inflater is None or self._inflater.eof)

    def decode(self, max_length: int) -> bytes:
        """Raises BadRequest, ImageTooLarge."""
        inflater = self._inflater
        if inflater is None or (inflater.eof and self.data):
            inflater = self._begin()
            if inflater is None:
                return b""
        try:
            piece = inflater.decompress(self.data, max_length)
        except zlib.error:
            raise BadRequest(
                f"the body is not valid {self.coding} data; leave Content-Encoding out if the body is not compressed"
            ) from None
        self.data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        # The output may have more, although all input is read.
        self._is_full = len(piece) == max_length and not inflater.eof
        self._total += len(piece)
        if self._total > self._max_bytes:
            raise ImageTooLarge(
                f"the decoded body has more than {self._max_bytes:,} bytes; send fewer or smaller images"
            )
        return piece

    def _begin(self) -> zlib._Decompress | None:
        """The decompressor of the data, or of the next member; None where the format is not known yet."""
        if self._members and not (self.coding == "gzip" and self.data[0] == GZIP_START):
            raise BadRequest(f"bytes follow the end of the body's {self.coding} data; send it alone")
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise BadRequest(f"the body's gzip data has more than {MAX_MEMBERS:,} members; compress it as one")
        window = GZIP
        if self.coding == "deflate":
            self.data, self._head = self._head + self.data, b""
            if len(self.data) < 2:
                self.data, self._head, self._members = b"", self.data, 0
                return None
            # RFC 1950: method 8, and a checksum of both bytes.
            is_zlib = self.data[0] & 15 == 8 and int.from_bytes(self.data[:2]) % 31 == 0
            window = ZLIB if is_zlib else RAW
        self._inflater = zlib.decompressobj(window)
        return self._inflater
