"""Inference requests and responses as HTTP bodies: JSON, followed by the tensors that go as raw bytes.

The header `Inference-Header-Content-Length` gives the JSON's length. Without it the whole body is JSON; with 0 there is
no JSON and the body is one encoded image (Triton's raw binary request).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from service.errors import BadRequest
from service.frontend.api.oip.protocol import (
    INPUT,
    MAX_LISTED,
    Datatype,
    InferRequest,
    InferResponse,
    InputTensor,
    RequestedOutput,
    class_count,
    element_count,
    refuse_shared_memory,
    shown_value,
)
from service.frontend.core.base64_text import decode_json_base64
from service.frontend.core.sniffing import BOM
from service.frontend.http.content_encoding import ENCODERS

HEADER_LENGTH = "Inference-Header-Content-Length"
PIECE_BYTES = 2**20
NUMBERS_BYTES = 2**16
"""Of numbers that are decoded at a time: about a millisecond."""
NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
NOT_BRACKETS = b"0123456789 \t\r\n"


def json_length(header: str | None, body_bytes: int) -> int | None:
    """The length of the JSON that a body begins with, by the header `Inference-Header-Content-Length`; None: all of it.

    Raises:
        BadRequest: the header is not a number, or exceeds the body.
    """
    if header is None:
        return None
    text = header.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= body_bytes):
        raise BadRequest(
            f"the header {HEADER_LENGTH} is {text[:20]!r}; expected the JSON's length in bytes, at most the body's "
            f"{body_bytes:,}"
        )
    return int(text)


def read_request(body: bytes, length: int | None) -> InferRequest:
    """Parse a decompressed body that begins with `length` bytes of JSON. Inputs of raw bytes are views on the body.

    Raises:
        BadRequest: the JSON, a length or an input's data is wrong.
    """
    if length == 0:
        return InferRequest("", (InputTensor(INPUT, Datatype.BYTES, (1,), [body]),), (), {}, binary=False)
    document = _parsed(body[:length].removeprefix(BOM))
    parameters = document.parameters
    binary = _boolean("binary_data_output", parameters.pop("binary_data_output", False))
    outputs = [_output(output, binary) for output in document.outputs]
    inputs = _inputs(document.inputs, memoryview(body)[len(body) if length is None else length :])
    return InferRequest(document.id, inputs, tuple(outputs), parameters, binary)


def encode_response(response: InferResponse, coding: str | None) -> tuple[bytes, dict[str, str]]:
    """The body and its headers. `coding`: one of ENCODERS, or None.

    Raises:
        BadRequest: an output has too many numbers for JSON.
    """
    outputs: list[dict[str, object]] = []
    parts: list[bytes] = []
    for tensor, binary in response.outputs:
        if binary:
            raw = tensor.raw()
            parts.append(raw)
            data: dict[str, object] = {"parameters": {"binary_data_size": len(raw)}}
        else:
            data = {"data": tensor.listed()}
        outputs.append({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, **data})
    document: dict[str, object] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    document["outputs"] = outputs
    body = msgspec.json.encode(document)
    headers = {"Content-Type": "application/json", "Vary": "Accept-Encoding"}
    if parts:
        headers["Content-Type"] = "application/octet-stream"
        headers[HEADER_LENGTH] = str(len(body))
        body = b"".join((body, *parts))
    if coding is not None:
        headers["Content-Encoding"] = coding
        body = ENCODERS[coding](body)
    return body, headers


class _Input(msgspec.Struct):
    """`data` is parsed once the datatype is known."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(_Body)
_decode_numbers = msgspec.json.Decoder(list[int]).decode


def _parsed(text: bytes) -> _Body:
    if len(text) > MAX_LISTED and _commas(text) >= MAX_LISTED + PIECE_BYTES:
        raise BadRequest(f"the JSON has more than {MAX_LISTED:,} elements, the limit; send tensors as binary data")
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON is not an inference request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"the request is not valid JSON: {error}; if raw tensors follow it, send its length as {HEADER_LENGTH}; "
            "if the body is a picture alone, 0"
        ) from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply") from None


def _inputs(inputs: list[_Input], rest: memoryview) -> tuple[InputTensor, ...]:
    """The tensors. Those of raw bytes lie one after the other in `rest`."""
    tensors = []
    for tensor in inputs:
        refuse_shared_memory(tensor.name, tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            data = _listed(tensor)
        elif isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
            raise BadRequest(
                f"input {tensor.name[:40]!r}: binary_data_size is {shown_value(size)}; expected a whole number, at "
                f"most the {len(rest):,} bytes that remain"
            )
        else:
            data, rest = rest[:size], rest[size:]
        tensors.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    if len(rest):
        raise BadRequest(f"{len(rest):,} bytes follow the last input; binary_data_size must cover them")
    return tuple(tensors)


def _listed(tensor: _Input) -> memoryview | list[bytes]:
    """An input's data in the JSON: numbers, nested as the shape or flat, or base64."""
    name, raw = tensor.name[:40], memoryview(tensor.data)
    if not len(raw):
        raise BadRequest(f"input {name!r} has neither `data` nor the parameter binary_data_size")
    if tensor.datatype == Datatype.BYTES:
        return _from_base64(name, tensor.data)
    if _commas(raw) >= MAX_LISTED:
        raise BadRequest(
            f"input {name!r} has more than {MAX_LISTED:,} elements, the limit of JSON; send it as binary data"
        )
    return _numbers(name, tensor.shape, raw)


def _commas(text: bytes | memoryview) -> int:
    """Counted in pieces: the interpreter's lock is free in between."""
    return sum(bytes(text[at : at + PIECE_BYTES]).count(b",") for at in range(0, len(text), PIECE_BYTES))


def _numbers(name: str, shape: Sequence[int], text: memoryview) -> memoryview:
    """The numbers of a list that is valid JSON, flat or nested as the shape.

    They are decoded in pieces, and in each without its brackets: the interpreter's lock is free in between, and no
    object is made for an inner list.

    Raises:
        BadRequest: it is no such list, or a number is not a whole one from 0 to 255.
    """
    expected = f"input {name!r}: its `data` must be a list of whole numbers from 0 to 255, flat or nested as its shape"
    numbers = bytearray()
    brackets: list[bytes] = []
    for piece in _pieces(text):
        brackets.append(piece.translate(None, NOT_BRACKETS))
        try:
            numbers += bytes(_decode_numbers(b"[%b]" % piece.translate(NO_BRACKETS)))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            raise BadRequest(expected) from None
    nesting = b",".join(brackets)
    if nesting != b"[%b]" % (b"," * (len(numbers) - 1)) and (
        element_count(name, shape) != len(numbers) or nesting != _nested(shape)
    ):
        raise BadRequest(f"{expected} {list(shape)}; it has {len(numbers):,} numbers")
    return memoryview(numbers)


def _pieces(text: memoryview) -> Iterator[bytes]:
    """The text between commas that are about `NUMBERS_BYTES` apart, without these commas."""
    begin = 0
    while begin < len(text):
        size = NUMBERS_BYTES
        while (end := bytes(text[begin : begin + size]).rfind(b",")) < 0 and begin + size < len(text):
            size *= 2
        if begin + size >= len(text):
            end = len(text) - begin
        yield bytes(text[begin : begin + end])
        begin += end + 1


def _nested(shape: Sequence[int]) -> bytes:
    """The brackets and commas of a list of this shape, which has no zero."""
    nesting = b""
    for size in reversed(shape):
        nesting = b"[%b]" % b",".join([nesting] * size)
    return nesting


def _from_base64(name: str, data: msgspec.Raw) -> list[bytes]:
    try:
        texts = msgspec.json.decode(data, type=list[msgspec.Raw])
        if texts and all(bytes(memoryview(text)[:1]) == b"[" for text in texts):
            texts = [element for row in texts for element in msgspec.json.decode(row, type=list[msgspec.Raw])]
        elements = []
        for text in texts:
            elements.append(decode_json_base64(text))
    except (msgspec.ValidationError, UnicodeDecodeError):
        raise BadRequest(
            f"input {name!r}: its `data` must be a list of strings, each the base64 of an encoded image"
        ) from None
    except (msgspec.DecodeError, RecursionError):
        raise BadRequest(f"input {name!r}: its `data` is not valid JSON, or is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"input {name!r}: element {len(elements)} {error}") from None
    return elements


def _output(output: _Output, binary: bool) -> RequestedOutput:
    refuse_shared_memory(output.name, output.parameters)
    wanted = _boolean("binary_data", output.parameters.get("binary_data", binary))
    return RequestedOutput(output.name, wanted, class_count(output.name[:40], output.parameters))


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"the parameter {name} is {shown_value(value)}; expected true or false")
    return value
