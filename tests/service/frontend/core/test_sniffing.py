"""What was sent in a picture's place is named, and pictures are not mistaken for anything else."""

from __future__ import annotations

import base64
import gzip
import re

import pytest

from model.errors import ImageUndecodable, UnsupportedFormat
from service.frontend.core.sniffing import MIN_STRIPPED_BYTES, TEXT_STARTS, explained, sniff
from tests.service.frontend.rest_server import picture

ONLY_HTTP = re.compile(r"HTTP|curl|Content-|header|form-data|JSON object|body|@")
JPEG = picture(30, width=400, height=300, form="JPEG")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"https://example.org/cat.jpg", "a URL"),
        (b"HTTP://EXAMPLE.ORG/cat.jpg?size=2\n", "a URL"),
        (b"s3://bucket/cat.jpg", "a URL"),
        (b"gopher://example.org/0cat.jpg", "a URL"),
        (b"data:image/png;base64,AAAA", "a data: URL"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n  <html lang=en>", "an HTML page"),
        (b'{"image": "AAAA"}', "JSON"),
        (b" [255, 216, 255, 224]", "JSON"),
        (b'"AAAA"', "JSON"),
        (b'--frontier\r\nContent-Disposition: form-data; name="image"\r\n\r\n', "a multipart form"),
        (b"image=%FF%D8%FF%E0", "a URL-encoded form"),
        (b"images%5B%5D=AAAA", "a URL-encoded form"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (JPEG.decode("utf-8", "replace").encode(), "text that was made of a picture's bytes"),
        (JPEG.decode("latin-1").encode(), "text that was made of a picture's bytes"),
        (picture().decode("latin-1").encode(), "text that was made of a picture's bytes"),
        (str(JPEG).encode(), "the text of a Python bytes object"),
        ('{"image": "AAAA"}'.encode("utf-16"), "UTF-16 text"),
        (gzip.compress(JPEG), "gzip data"),
        (b"PK\x03\x04\x14\x00", "a ZIP archive"),
        (b"cat.jpg", "the name of a file"),
        (b"@/home/me/my cat.jpeg\n", "the name of a file"),
        (JPEG.hex().encode(), "hexadecimal text"),
        (JPEG.hex(" ", 2).upper().encode(), "hexadecimal text"),
        (b"0x" + picture().hex().encode(), "hexadecimal text"),
        (base64.b64encode(JPEG), "base64 text"),
        (base64.encodebytes(JPEG), "base64 text"),
        (base64.urlsafe_b64encode(JPEG), "base64 text"),
    ],
)
def test_evident_contents(data: bytes, what: str) -> None:
    """The error has the name of what was sent, and what to do instead; over gRPC it has no advice for HTTP."""
    error = explained(UnsupportedFormat("the image format is not supported"), data)
    assert isinstance(error, UnsupportedFormat)
    assert error.grpc_detail.startswith(f"this is {what}, not a picture; ")
    assert error.http_detail.startswith(error.grpc_detail)
    assert not ONLY_HTTP.search(error.grpc_detail)


@pytest.mark.parametrize(
    "data",
    [b"", b" \n", b"hello", b"%PDF-1.7 a document", b"P6 2 2 255 ", b"<svg xmlns='x'/>", b"\x00\x00\x00\x18ftyp", JPEG],
)
def test_other_contents_keep_their_error(data: bytes) -> None:
    """What is not evident has the error that it had."""
    error = UnsupportedFormat("as it was")
    assert sniff(data) is None
    assert explained(error, data) is error


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_stripped_pictures(form: str) -> None:
    """A picture without line breaks and zeros was sent by curl's -d, whatever its format."""
    data = bytes(range(256)) * 100 if form == "BMP" else JPEG
    stripped = (picture(form=form)[:30] + data * 2).translate(None, b"\r\n\0")
    assert len(stripped) >= MIN_STRIPPED_BYTES
    for error in (ImageUndecodable("corrupt"), UnsupportedFormat("as it was")):
        found = explained(error, stripped)
        assert type(found) is type(error)
        assert "--data-binary" in found.http_detail
        assert not ONLY_HTTP.search(found.grpc_detail)


def test_damaged_pictures_keep_their_error() -> None:
    """A picture with line breaks or zeros was damaged in another way."""
    error = ImageUndecodable("corrupt")
    assert explained(error, JPEG[:1500]) is error
    assert explained(error, b'{"image": 1}' * 1000) is error


def test_usual_pictures_do_not_begin_as_text() -> None:
    """JPEG and PNG, which most pictures are, need no look at their content."""
    assert JPEG[:1] not in TEXT_STARTS
    assert picture()[:1] not in TEXT_STARTS


def test_advice_fits_every_transport() -> None:
    """Neither a field of a form nor a flag of curl is named: gRPC and the JSON APIs have none."""
    for data in (b"cat.jpg", b"[255, 216]", b'"AAAA"', JPEG.hex().encode()):
        content = sniff(data)
        assert content is not None
        assert "-F " not in content.remedy
        assert "bytes" in content.remedy
        assert content.base64_remedy == "send base64 of the picture's bytes"
    for data in (b"[255, 216]", b'"AAAA"'):
        error = explained(UnsupportedFormat("the image format is not supported"), data)
        assert '{"image": BASE64}' in error.http_detail
