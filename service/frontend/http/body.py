"""The images in a body: one as it is or as text, several in a form (RFC 7578) or in JSON. Text is base64 or a URL.

Nothing is written to disk. Bytes are counted as they come, so a body that is too long is refused before its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from model.errors import ImageTooLarge
from service.errors import BadRequest
from service.frontend.core.base64_text import decode_json_base64, decode_text
from service.frontend.core.engine import ByteBudget
from service.frontend.core.image_fetcher import JOIN_BYTES, ImageUrl
from service.frontend.core.sniffing import BOM, TEXT_STARTS, is_base64, is_data_url, is_url, text_start
from service.frontend.http.middleware import HttpRequest
from service.settings import Settings

IMAGE_FIELDS = (b"image", b"file")
DISPOSITION = b"content-disposition"

FIRST_BYTES_OF_JSON = b'{["-0123456789tfn'
"""A body whose Content-Type is JSON is read as an image all the same if it begins with none of these."""
PIECE_BYTES = 2**18
"""Of an image in a form. The parser passes on its data in parts that may be a byte long."""

SHORT_BYTES = 2**14
"""Text that is no longer is parsed and decoded without a thread."""

HOW_TO_SEND = (
    "send the bytes of an image as the body, or multipart/form-data with parts named `image`, or JSON "
    '{"image": "<base64>"} or {"images": ["<base64>", …]}'
)

EMPTY_BODY = f"the body is empty; {HOW_TO_SEND}"

Upload = bytes | ImageUrl | BadRequest
"""One encoded image, where it is, or the error in its place."""

T = TypeVar("T")

NULL = msgspec.Raw(b"null")


class JsonBody(msgspec.Struct, forbid_unknown_fields=True):
    """Base64, or a URL, of one image or of several."""

    image: msgspec.Raw = NULL
    images: list[msgspec.Raw] | None = None


async def read_uploads(request: HttpRequest, settings: Settings, bodies: ByteBudget) -> list[Upload]:
    """Read the body: at least one upload, in their order. Its bytes are taken from `bodies` as they come.

    Raises:
        BadRequest: broken multipart or JSON, or no image at all.
        ImageTooLarge: more bytes in all, or more images, than one request may have.
        Overloaded: `bodies` has no room.
        ClientDisconnect: the client left before the body's end.
    """
    media_type, options = parse_options_header(request.headers.get(b"content-type"))
    if media_type == b"multipart/form-data":
        form = FormImages(options.get(b"boundary", b""), settings.max_images)
        await request.read(settings.max_request_bytes, bodies, form.feed)
        uploads = form.finish() if request.record.held_bytes <= JOIN_BYTES else await asyncio.to_thread(form.finish)
        if not uploads:
            raise BadRequest("the multipart body has no part; name one or several `image`")
        return uploads
    body = await request.read(settings.max_request_bytes, bodies)
    if not body:
        raise BadRequest(EMPTY_BODY)
    if body[:1] not in TEXT_STARTS:
        return [body]
    return await uploads_of_text(body, settings.max_images, is_json=media_type == b"application/json")


async def uploads_of_text(body: bytes, max_images: int, *, is_json: bool = False) -> list[Upload]:
    """The images of a body that begins as text: JSON, base64 or a URL; else the body itself.

    What begins as a JSON object is JSON, and with `is_json` (by its Content-Type) any other JSON, too.

    Raises:
        BadRequest, ImageTooLarge: as `read_uploads`.
    """
    start = text_start(body)
    if start[:1] == b"{" or (is_json and start[:1] and start[0] in FIRST_BYTES_OF_JSON):
        return await off_loop(partial(_from_json, body, max_images), len(body))
    return [await off_loop(partial(image_of_text, body), len(body))]


async def off_loop(work: Callable[[], T], nbytes: int) -> T:
    """The result of `work` on so many bytes, in a thread where it takes long."""
    return work() if nbytes <= SHORT_BYTES else await asyncio.to_thread(work)


def image_of_text(data: bytes) -> Upload:
    """The image that base64 or a `data:` URL encodes, or where it is; else the data itself, which may be an image."""
    start = text_start(data)
    if is_url(start):
        return url_of(data)
    if not is_data_url(start) and not is_base64(start):
        return data
    try:
        return decode_text(memoryview(data)[data.index(start[:1]) :])
    except ValueError as error:
        return BadRequest(f"the image {error}")


def url_of(text: bytes) -> ImageUrl:
    """The URL that a text is. One that is too long is cut where that still shows."""
    return ImageUrl(text[: 2 * SHORT_BYTES].removeprefix(BOM).strip().decode("utf-8", "replace"))


class FormImages:
    """Parses a form: `feed` it the body's chunks, then call `finish`. The parser bounds a part's headers."""

    def __init__(self, boundary: bytes, max_images: int) -> None:
        """Raises BadRequest where there is no usable boundary."""
        if not boundary:
            raise BadRequest(
                "multipart/form-data needs a boundary in its Content-Type; let the HTTP library set the header"
            )
        self._max_images = max_images
        self._images: list[list[bytes]] = []
        """In pieces, which are put together at the end."""
        self._pieces: list[bytes] = []
        """Of the part that is being read."""
        self._piece = bytearray()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._field: bytes | None = None
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_data,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise BadRequest(f"the multipart body's boundary cannot be used: {error}") from None

    def feed(self, chunk: bytes) -> None:
        """Take the body's next bytes.

        Raises:
            BadRequest: the body breaks the format, or has a part of another name.
            ImageTooLarge: there are too many images.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest(f"the multipart body is broken: {error}") from None

    def finish(self) -> list[Upload]:
        """The images, in their order; base64 and `data:` URLs are decoded.

        Raises:
            BadRequest: the body ended too early.
        """
        if not self._complete:
            raise BadRequest("the multipart body ends before its closing boundary; send it whole")
        images = [b"".join(pieces) for pieces in self._images]
        return [image_of_text(image) if image[:1] in TEXT_STARTS else image for image in images]

    def _begin_part(self) -> None:
        self._field = None

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == DISPOSITION:
            _, options = parse_options_header(self._header_value.decode("latin-1"))
            self._field = options.get(b"name")
        self._header_name.clear()
        self._header_value.clear()

    def _begin_data(self) -> None:
        if self._field is None:
            raise BadRequest("a part of the multipart body has no name; name each `image`")
        self._pieces = self._begin_field(self._field)

    def _begin_field(self, name: bytes) -> list[bytes]:
        """Where the data of a part of this name go, in pieces. Raises BadRequest, ImageTooLarge."""
        if name not in IMAGE_FIELDS:
            shown_name = ascii(name[:80].decode("utf-8", "replace"))
            raise BadRequest(
                f"a part of the multipart body is named {shown_name}, expected `image` or `file`; parameters go into "
                "the query string"
            )
        return self._begin_image()

    def _begin_image(self) -> list[bytes]:
        if len(self._images) == self._max_images:
            raise too_many_images(self._max_images)
        self._images.append([])
        return self._images[-1]

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._piece += data[start:end]
        if len(self._piece) >= PIECE_BYTES:
            self._end_part()

    def _end_part(self) -> None:
        self._pieces.append(bytes(self._piece))
        self._piece.clear()

    def _end(self) -> None:
        self._complete = True


def too_many_images(max_images: int) -> ImageTooLarge:
    images = "image" if max_images == 1 else "images"
    return ImageTooLarge(f"the request has more than {max_images} {images}; send them in several requests")


def image_of(raw: msgspec.Raw, name: str) -> Upload:
    """The bytes of base64 or of a `data:` URL, or another URL; `name` is its place in the JSON body, for errors.

    Raises:
        msgspec.ValidationError: it is no string.
    """
    try:
        return decode_json_base64(raw)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{name}`") from None
    except ValueError as error:
        text = msgspec.json.decode(raw, type=str).encode()
        return url_of(text) if is_url(text_start(text)) else BadRequest(f"the JSON body's `{name}` {error}")


def _from_json(body: bytes, max_images: int) -> list[Upload]:
    try:
        document = msgspec.json.decode(body.removeprefix(BOM), type=JsonBody)
        if (document.image == NULL) == (document.images is None):
            raise BadRequest(f"the JSON body must have either `image` or `images`; {HOW_TO_SEND}")
        if document.images is None:
            return [image_of(document.image, "image")]
        if not document.images:
            raise BadRequest("the JSON body's `images` is empty; give at least one image")
        if len(document.images) > max_images:
            raise too_many_images(max_images)
        return [image_of(text, f"images[{index}]") for index, text in enumerate(document.images)]
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON body does not have the expected form: {error}; {HOW_TO_SEND}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the JSON body is nested too deeply") from None
