"""What bytes are that are no picture, for errors: clients often send something else in a picture's place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from model.errors import ConvMLPError, UnsupportedFormat

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, which some programs write before text."""
WHITE_SPACE = b" \t\r\n\f\v"
TEXT_STARTS = frozenset(bytes([code]) for code in (*BOM[:1], *WHITE_SPACE, *range(0x21, 0x7F)))
"""The first bytes of text. JPEG and PNG begin with none of these."""
START_BYTES = 2**10
"""Of the data that are looked at, behind white space."""
MAX_WHITE_SPACE = 2**16
"""Less white space than this may stand before text; it is skipped on the event loop."""
MIN_BASE64 = 64
"""Characters. A shorter text may look like base64 by chance."""
MIN_STRIPPED_BYTES = 2**10
"""So many bytes of an encoded picture have a line break or a zero among them, but for one in 100,000 pictures."""
MAX_STRIPPED_BYTES = 2**16
"""Searched for them at most, because this runs on the event loop."""

_URL = re.compile(rb"[a-z][a-z0-9+.-]{0,31}://", re.IGNORECASE)
_HTML = re.compile(rb"<(?:!doctype html|html|head|body|title|script|meta)\b", re.IGNORECASE)
_MULTIPART = re.compile(rb"--[^\r\n]{1,200}\r?\ncontent-", re.IGNORECASE)
_FORM = re.compile(rb"(?:images?|files?|inputs|data|url)(?:%5B%5D|\[\])?=", re.IGNORECASE)
_FILE_NAME = re.compile(rb"[^\r\n]{1,250}\.[A-Za-z0-9]{2,5}\s*")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\r\n]+={0,2}\s*")
_HEX = re.compile(rb"(?:0x|\\\\?x)?[0-9A-Fa-f\s]+")
_READ_AS_TEXT = (
    b"\xef\xbf\xbd",  # invalid bytes became U+FFFD
    b"\xc3\xbf\xc3\x98\xc3\xbf",  # bytes became characters: of a JPEG
    b"\xc2\x89PNG",  # of a PNG
)


class Content(NamedTuple):
    """`what` stands behind "is"; `remedy` is what its sender should do, `http_remedy` what else it may do over HTTP,
    `base64_remedy` what it should do where base64 is expected."""

    what: str
    remedy: str = "send the bytes of the picture"
    http_remedy: str = ""
    base64_remedy: str = "send base64 of the picture's bytes"


def text_start(data: bytes) -> bytes:
    """The first bytes behind a byte order mark and white space."""
    start = data[:START_BYTES].removeprefix(BOM).lstrip(WHITE_SPACE)
    if len(start) < START_BYTES // 2 < len(data):
        start = data[:MAX_WHITE_SPACE].removeprefix(BOM).lstrip(WHITE_SPACE)[:START_BYTES]
    return start


def is_data_url(start: bytes) -> bool:
    return start[:5].lower() == b"data:"


def is_url(start: bytes) -> bool:
    """Whether a text that begins so is a URL, other than one with the data itself."""
    return _URL.match(start) is not None


def is_base64(start: bytes) -> bool:
    """Whether a text that begins so is base64, by all appearances."""
    return len(start) >= MIN_BASE64 and _BASE64.fullmatch(start) is not None and not is_hexadecimal(start)


def is_hexadecimal(start: bytes) -> bool:
    """Whether a text that begins so is hexadecimal. All its characters may be base64's, too."""
    return len(start) >= MIN_BASE64 and _HEX.fullmatch(start) is not None and start.count(start[:1]) < len(start)


def sniff(data: bytes) -> Content | None:
    """What data that is no picture is; None where that is not evident."""
    start = text_start(data) if data[:1] in TEXT_STARTS else data[:START_BYTES]
    for matches, content in _CONTENTS:
        if matches(start):
            return content
    return None


def explained(error: ConvMLPError, data: bytes) -> ConvMLPError:
    """The error of an image that cannot be decoded, with what its bytes are where that is evident."""
    if isinstance(error, UnsupportedFormat) and (content := sniff(data)) is not None:
        message = f"this is {content.what}, not a picture; {content.remedy}"
        return UnsupportedFormat(message).with_advice(http=content.http_remedy)
    head = data[:MAX_STRIPPED_BYTES]
    if len(head) >= MIN_STRIPPED_BYTES and not head.isascii() and not any(code in head for code in (10, 13, 0)):
        return type(error)(
            "the picture has lost all its line breaks and zeros (bytes 10, 13 and 0); send its bytes unchanged"
        ).with_advice(http="curl's -d removes them, --data-binary @FILE does not")
    return error


def _begins(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(beginnings)


_NO_URLS = "URLs are not fetched: download the picture and send it"
_CONTENTS: tuple[tuple[Callable[[bytes], object], Content], ...] = (
    (_URL.match, Content("a URL", _NO_URLS, base64_remedy=_NO_URLS)),
    (is_data_url, Content("a data: URL", "send the bytes that it encodes")),
    (_HTML.match, Content("an HTML page", "perhaps an error page was saved in the picture's place")),
    (
        _begins(b"{", b"[", b'"'),
        Content("JSON", http_remedy='/classify, /detect and /segment also take the JSON object {"image": BASE64}'),
    ),
    (
        _MULTIPART.match,
        Content("a multipart form", "send the picture alone", "or let the HTTP library set the Content-Type"),
    ),
    (_FORM.match, Content("a URL-encoded form", http_remedy="or send the file as multipart/form-data")),
    (_begins(b"version https://git-lfs."), Content("a Git LFS pointer", "get the picture by `git lfs pull`")),
    (
        _begins(*_READ_AS_TEXT),
        Content("text that was made of a picture's bytes", "read the file as bytes, without an encoding"),
    ),
    (_begins(b"b'\\x", b'b"\\x'), Content("the text of a Python bytes object", "send the bytes, not str() of them")),
    (_begins(b"\xff\xfe", b"\xfe\xff"), Content("UTF-16 text", "send UTF-8, or the bytes of the picture")),
    (_begins(b"\x1f\x8b"), Content("gzip data", "decompress it", "or name it in Content-Encoding")),
    (_begins(b"PK\x03\x04"), Content("a ZIP archive", "send the pictures in it one by one")),
    (
        _FILE_NAME.fullmatch,
        Content("the name of a file", "send the file's bytes", "curl takes them from @FILE"),
    ),
    (is_hexadecimal, Content("hexadecimal text", "decode it and send the bytes")),
    (is_base64, Content("base64 text", "decode it and send the bytes")),
)
