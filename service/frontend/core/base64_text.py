"""Base64 in JSON, decoded in pieces.

Decoding holds the interpreter's lock, for half a second where the text has 64 MB and `binascii` decodes it. msgspec
decodes ten times as fast, and between two pieces other threads, of which the event loop is one, get their turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from service.frontend.core.sniffing import START_BYTES, is_base64, is_data_url, is_hexadecimal, sniff

PIECE_BYTES = 2**18
"""Of text; a multiple of 4."""
WHITE_SPACE = b" \t\r\n"

_decode_piece = msgspec.json.Decoder(bytes).decode


def decode_json_base64(raw: msgspec.Raw) -> bytes:
    """The bytes of a JSON string of base64 (RFC 4648, with padding), or of a `data:` URL with base64. White space in
    it does not count.

    Raises:
        msgspec.ValidationError: the JSON is no string.
        ValueError: the string is not of this form; the error has the reason.
    """
    text = memoryview(raw)
    if bytes(text[:1]) == b'"' and not any(b"\\" in piece for piece in _pieces(text)):
        text = text[1:-1]
    else:  # slashes are often escaped
        text = memoryview(msgspec.json.decode(raw, type=str).encode())
    return decode_text(text)


def decode_text(text: memoryview) -> bytes:
    """The bytes of base64, or of a `data:` URL with base64. White space in it does not count.

    Raises:
        ValueError: the text is not of this form; the error has the reason.
    """
    head = bytes(text[:START_BYTES])
    if is_data_url(head):
        kind, _, _ = head.partition(b",")
        if not kind.lower().endswith(b";base64"):
            raise ValueError("is a data: URL without `;base64,`; only base64 is read")
        text = text[len(kind) + 1 :]
        head = bytes(text[:START_BYTES])
    try:
        if is_hexadecimal(head):
            raise ValueError("is hexadecimal text")
        return decode_base64(text)
    except ValueError:
        content = None if is_base64(head) else sniff(head)
        if content is None:
            raise
        raise ValueError(f"is {content.what}, not base64 of a picture; {content.base64_remedy}") from None


def decode_base64(text: memoryview) -> bytes:
    """The bytes of base64, white space left out.

    Raises:
        ValueError: the text is not base64; the error has the reason.
    """
    decoded: list[bytes] = []
    rest, left = b"", len(text)
    for piece in _pieces(text):
        left -= len(piece)
        if not rest and (not left or piece[-1:] != b"="):
            with contextlib.suppress(msgspec.DecodeError):  # else it may have white space
                decoded.append(_decode_piece(b'"%b"' % piece))
                continue
        dense = rest + piece.translate(None, WHITE_SPACE)
        # Padding may be followed by white space, in the next piece.
        whole = len(dense) if not left else max(len(dense) // 4 * 4 - 4, 0)
        try:
            decoded.append(_decode_piece(b'"%b"' % dense[:whole]))
        except msgspec.DecodeError:
            raise ValueError("is not valid base64 (RFC 4648: the standard alphabet, with padding)") from None
        rest = dense[whole:]
    return b"".join(decoded)


def _pieces(text: memoryview) -> Iterator[bytes]:
    for start in range(0, len(text), PIECE_BYTES):
        yield bytes(text[start : start + PIECE_BYTES])
