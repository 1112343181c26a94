"""The parts of MJPEG streams, in the forms that cameras send them in."""

from __future__ import annotations

import asyncio
import base64

import pytest

from service.cli.sources.frame import SourceLost, shown
from service.cli.sources.mjpeg import MAX_HEAD_BYTES, MjpegParser, MjpegSource
from tests.service.frontend.picture_site import open_site, sends

FIRST, SECOND = b"\xff\xd8 one \r\n--other\r\n\r\n \xff\xd9", b"\xff\xd8 two \xff\xd9"
WITH_LENGTH = b"".join(
    b"--frame\r\nContent-Type: image/jpeg\r\ncontent-LENGTH: %d\r\n\r\n%b\r\n" % (len(one), one)
    for one in (FIRST, SECOND)
)


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
@pytest.mark.parametrize(
    ("boundary", "stream", "closed"),
    [
        (b"frame", WITH_LENGTH, False),
        (b"frame", b"preamble\r\n" + WITH_LENGTH + b"--frame--\r\n", True),
        (b"--frame", WITH_LENGTH, False),
        (b"frame", WITH_LENGTH.replace(b"\r\n--frame\r\n", b"--frame\r\n"), False),
        (
            b"frame",
            b"".join(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n%b\r\n" % one for one in (FIRST, SECOND))
            + b"--frame--",
            True,
        ),
    ],
    ids=["lengths", "preamble and end", "dashes in the parameter", "no line before a boundary", "no lengths"],
)
def test_each_part_is_a_frame(boundary: bytes, stream: bytes, closed: bool, step: int) -> None:
    """The frames are the same however the bytes are cut, and with a Content-Length each comes with its last byte."""
    parser = MjpegParser(boundary)
    frames = [frame for at in range(0, len(stream), step) for frame in parser.feed(stream[at : at + step])]
    assert (frames, parser.is_closed) == ([FIRST, SECOND], closed)


def test_a_frame_comes_with_its_last_byte() -> None:
    """With a Content-Length no frame waits for the next one."""
    parser = MjpegParser(b"frame")
    head = b"--frame\r\nContent-Length: %d\r\n\r\n" % len(FIRST)
    assert list(parser.feed(head + FIRST[:-1])) == []
    assert list(parser.feed(FIRST[-1:])) == [FIRST]


@pytest.mark.parametrize(
    "stream",
    [
        b"x" * (MAX_HEAD_BYTES + 1),
        b"--frame\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
        b"--frame\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_what_has_no_end_is_refused(stream: bytes) -> None:
    """Neither headers nor a frame grow beyond their bound."""
    with pytest.raises(ValueError, match=r"bytes|no parts"):
        list(MjpegParser(b"frame").feed(stream))


async def first_frame(url: str) -> bytes:
    async for frame in MjpegSource(url).frames():
        assert isinstance(frame.encoded, bytes)
        return frame.encoded
    raise AssertionError("there is no frame")


async def test_a_camera_with_a_password() -> None:
    """User and password go to a camera that asks for them, and stand in no message."""
    stream = sends(WITH_LENGTH, "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame")
    challenge = sends(b"", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=camera")
    async with open_site() as site:

        async def answer(writer: asyncio.StreamWriter) -> None:
            known = f"Basic {base64.b64encode(b'me:p@ss').decode()}" in site.heads[-1]
            await (stream if known else challenge)(writer)

        site.answers["/video"] = answer
        assert await first_frame(site.url("/video", "me:p%40ss@127.0.0.1")) == FIRST
        with pytest.raises(SourceLost, match="401 Unauthorized") as caught:
            await first_frame(site.url("/video?key=p@ss", "me:wrong@127.0.0.1"))
        assert "wrong" not in str(caught.value)
        assert "p@ss" not in str(caught.value)


async def test_what_is_no_mjpeg_is_named() -> None:
    """A page or a single picture is an error that names what came, and what is expected."""
    async with open_site() as site:
        site.answers["/page"] = sends(b"<html>", "HTTP/1.1 200 OK\r\nContent-Type: text/html")
        with pytest.raises(SourceLost, match="'text/html'; expected multipart/x-mixed-replace"):
            await first_frame(site.url("/page"))


def test_urls_are_shown_without_secrets() -> None:
    """Messages have a camera's address, and neither its password nor its query."""
    assert shown("rtsp://me:secret@camera:554/live?token=secret#x") == "rtsp://camera:554/live"
    assert shown("/videos/a?b.mp4") == "/videos/a?b.mp4"
