"""Images out of a multipart/form-data body (RFC 7578), in memory: nothing is written to disk."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from model.errors import ImageTooLarge
from service.errors import BadRequest

IMAGE_FIELDS = (b"image", b"file")
DISPOSITION = b"content-disposition"


class FormImages:
    """Feed it the body's chunks, then take its images. The parser bounds number and size of a part's headers."""

    def __init__(self, boundary: bytes, max_images: int) -> None:
        """Raises BadRequest where there is no usable boundary."""
        if not boundary:
            raise BadRequest(
                "multipart/form-data needs a boundary in its Content-Type; let the client's library write the header"
            )
        self._max_images = max_images
        self._images: list[bytes] = []
        self._part = bytearray()
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
        return self._images

    def _begin_part(self) -> None:
        if len(self._images) == self._max_images:
            raise too_many_images(self._max_images)
        self._field = None
        self._part = bytearray()

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
        self._part += data[start:end]

    def _end_part(self) -> None:
        self._images.append(bytes(self._part))
        self._part = bytearray()

    def _end(self) -> None:
        self._complete = True


def too_many_images(most: int) -> ImageTooLarge:
    return ImageTooLarge(f"the request has more than {most} images; send them in several requests")
