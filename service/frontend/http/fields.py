"""Forms and query strings of other products' clients, which send more fields than are read."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header

from service.errors import BadParameter, BadRequest
from service.frontend.core.engine import ByteBudget
from service.frontend.core.image_fetcher import JOIN_BYTES
from service.frontend.core.parameters import Parameter, parse_value
from service.frontend.core.sniffing import TEXT_STARTS
from service.frontend.http.body import FormImages, Upload, image_of_text, off_loop
from service.frontend.http.middleware import HttpRequest

MAX_PARTS = 64
"""Of a form."""
MAX_TEXT_BYTES = 4096
"""Of a form's field that is read as text."""
MAX_QUERY_FIELDS = 64


class Fields(NamedTuple):
    """One image, and the texts of the fields beside it."""

    image: Upload
    texts: Mapping[str, str]


class FieldsForm(FormImages):
    """A form with one image, in a part of any of `image_names`. The fields of `text_names` are read as text.

    Parts of other names are read past.
    """

    def __init__(self, boundary: bytes, image_names: Collection[bytes], text_names: Collection[bytes]) -> None:
        """Raises BadRequest where there is no usable boundary."""
        super().__init__(boundary, max_images=1)
        self._image_names = image_names
        self._text_names = text_names
        self._texts: dict[bytes, list[bytes]] = {}
        self._parts = 0

    def _begin_field(self, name: bytes) -> list[bytes]:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts; send the image and few fields")
        if name in self._image_names:
            return self._begin_image()
        pieces: list[bytes] = []
        if name in self._text_names:
            self._texts[name] = pieces
        return pieces

    def texts(self) -> dict[str, str]:
        """The fields that were read as text, the last of each name, after `finish`.

        Raises:
            BadRequest: one is too long, or is not UTF-8.
        """
        texts = {}
        for name, pieces in self._texts.items():
            data, shown_name = b"".join(pieces), name.decode()
            if len(data) > MAX_TEXT_BYTES:
                raise BadRequest(f"the form's field {shown_name!r} has more than {MAX_TEXT_BYTES} bytes")
            try:
                texts[shown_name] = data.decode()
            except UnicodeDecodeError:
                raise BadRequest(f"the form's field {shown_name!r} is not UTF-8 text") from None
        return texts


async def read_fields(
    request: HttpRequest,
    max_bytes: int,
    bodies: ByteBudget,
    image_names: Collection[bytes],
    text_names: Collection[bytes] = (),
) -> Fields:
    """Read a body that is a form with one image, or the bytes, base64 or URL of one. Its bytes are taken from `bodies`.

    Raises:
        BadRequest: broken multipart, or no image.
        ImageTooLarge: more bytes than `max_bytes`, or several images.
        Overloaded: `bodies` has no room.
        ClientDisconnect: the client left before the body's end.
    """
    media_type, options = parse_options_header(request.headers.get(b"content-type"))
    name = next(iter(image_names)).decode()
    if media_type == b"multipart/form-data":
        form = FieldsForm(options.get(b"boundary", b""), image_names, text_names)
        await request.read(max_bytes, bodies, form.feed)
        large = request.record.held_bytes > JOIN_BYTES
        uploads = await asyncio.to_thread(form.finish) if large else form.finish()
        if not uploads:
            raise BadRequest(f"the form has no image; send it as the part `{name}`")
        return Fields(uploads[0], form.texts())
    body = await request.read(max_bytes, bodies)
    if not body:
        raise BadRequest(f"the body is empty; send a form with the part `{name}`, or an image as the body")
    is_text = body[:1] in TEXT_STARTS
    return Fields(await off_loop(partial(image_of_text, body), len(body)) if is_text else body, {})


def query_texts(query_string: bytes) -> dict[str, str]:
    """The fields of a query string, the last of each name.

    Raises:
        BadParameter: it cannot be read, or has too many fields.
    """
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:
        raise BadParameter(
            f"the query string cannot be read; expected at most {MAX_QUERY_FIELDS} percent-encoded UTF-8 fields"
        ) from None
    return dict(pairs)


def parse_values(table: Mapping[str, Parameter], texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of those parameters of `table` that `texts` has; other texts are ignored. Raises BadParameter."""
    return {name: parse_value(name, parameter, texts[name]) for name, parameter in table.items() if name in texts}
