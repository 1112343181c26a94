"""The encoded images in a body: one as it is, several in a form (RFC 7578), or base64 in JSON.

Nothing is written to disk. Bytes are counted as they come, so a body that is too long is refused before its end.
"""

from __future__ import annotations

import asyncio

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from model.errors import ImageTooLarge
from service.errors import BadRequest
from service.frontend.core.base64_text import decode_json_base64
from service.frontend.core.engine import ByteBudget
from service.frontend.http.middleware import JOIN_BYTES, HttpRequest
from service.settings import Settings

IMAGE_FIELDS = (b"image", b"file")
DISPOSITION = b"content-disposition"

FIRST_BYTES_OF_JSON = b'{["-0123456789tfn'
"""No image begins with one of these, so an image with a wrong Content-Type is still read as an image."""

PIECE_BYTES = 2**18
"""Of an image in a form. The parser passes on its data in parts that may be a byte long."""

_JSON_STARTS = frozenset(FIRST_BYTES_OF_JSON[i : i + 1] for i in range(len(FIRST_BYTES_OF_JSON)))

HOW_TO_SEND = (
    "send the bytes of an image as the body, or multipart/form-data with parts named `image`, or JSON "
    '{"image": "<base64>"} or {"images": ["<base64>", …]}'
)

EMPTY_BODY = f"the body is empty; {HOW_TO_SEND}"

Upload = bytes | BadRequest
"""One encoded image, or the error in its place."""


NULL = msgspec.Raw(b"null")


class JsonBody(msgspec.Struct, forbid_unknown_fields=True):
    """Base64, or a `data:` URL, of one image or of several."""

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
        nbytes = request.record.request_bytes
        return [*(form.finish() if nbytes <= JOIN_BYTES else await asyncio.to_thread(form.finish))]
    body = await request.read(settings.max_request_bytes, bodies)
    if not body:
        raise BadRequest(EMPTY_BODY)
    if media_type == b"application/json" and body.lstrip()[:1] in _JSON_STARTS:
        return await asyncio.to_thread(_from_json, body, settings.max_images)
    return [body]


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
                    "on_headers_finished": self._check_field,
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

    def finish(self) -> list[bytes]:
        """The images, in their order.

        Raises:
            BadRequest: the body ended too early, or had no image.
        """
        if not self._complete:
            raise BadRequest("the multipart body ends before its closing boundary; send it whole")
        if not self._images:
            raise BadRequest("the multipart body has no part; name one or several `image`")
        return [b"".join(pieces) for pieces in self._images]

    def _begin_part(self) -> None:
        if len(self._images) == self._max_images:
            raise too_many_images(self._max_images)
        self._field = None
        self._images.append([])

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

    def _check_field(self) -> None:
        if self._field is None:
            raise BadRequest("a part of the multipart body has no name; name each `image`")
        if self._field not in IMAGE_FIELDS:
            name = ascii(self._field[:80].decode("utf-8", "replace"))
            raise BadRequest(
                f"a part of the multipart body is named {name}, expected `image` or `file`; parameters go into "
                "the query string"
            )

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._piece += data[start:end]
        if len(self._piece) >= PIECE_BYTES:
            self._end_part()

    def _end_part(self) -> None:
        self._images[-1].append(bytes(self._piece))
        self._piece.clear()

    def _end(self) -> None:
        self._complete = True


def too_many_images(max_images: int) -> ImageTooLarge:
    return ImageTooLarge(f"the request has more than {max_images} images; send them in several requests")


def image_of(raw: msgspec.Raw, name: str) -> Upload:
    """The bytes of base64 or of a `data:` URL; `name` is its place in the JSON body, for errors.

    Raises:
        msgspec.ValidationError: it is no string.
    """
    try:
        return decode_json_base64(raw)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{name}`") from None
    except ValueError as error:
        return BadRequest(f"the JSON body's `{name}` {error}")


def _from_json(body: bytes, max_images: int) -> list[Upload]:
    try:
        document = msgspec.json.decode(body, type=JsonBody)
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
