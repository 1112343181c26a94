"""InferResponse → the body over HTTP: JSON, and behind it the outputs that were asked for as raw bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from service.frontend.oip.http_request import HEADER_LENGTH
from service.frontend.oip.request import VERSION, InferResponse

FASTEST = 1
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, FASTEST, mtime=0),
    "deflate": lambda data: zlib.compress(data, FASTEST),
}
"""The preferred first. `deflate` is zlib's format (RFC 9110, section 8.4.1.2)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response's body and the headers that tell of its form."""

    body: bytes
    headers: dict[str, str]


def encode_response(response: InferResponse, coding: str | None) -> Encoded:
    """`coding`: one of CODINGS, or None.

    Raises:
        BadRequest: an output has too many numbers for JSON.
    """
    document: dict[str, object] = {"model_name": response.model, "model_version": VERSION}
    if response.id:
        document["id"] = response.id
    outputs, parts = [], []
    for tensor, binary in response.outputs:
        told: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            raw = tensor.raw()
            parts.append(raw)
            told["parameters"] = {"binary_data_size": len(raw)}
        else:
            told["data"] = tensor.listed()
        outputs.append(told)
    text = msgspec.json.encode({**document, "outputs": outputs})
    headers = {"Content-Type": "application/json", "Vary": "Accept-Encoding"}
    if parts:
        headers["Content-Type"] = "application/octet-stream"
        headers[HEADER_LENGTH] = str(len(text))
    body = b"".join((text, *parts))
    if coding is not None:
        headers["Content-Encoding"] = coding
        body = CODINGS[coding](body)
    return Encoded(body, headers)


def negotiate_coding(accept_encoding: str | None) -> str | None:
    """The coding that a caller likes best; None where it takes none, or likes none better than none at all."""
    qualities = dict(map(_quality, (accept_encoding or "").split(",")))
    others = qualities.get("*", 0.0)
    best = max(CODINGS, key=lambda coding: qualities.get(coding, others))
    return best if qualities.get(best, others) > qualities.get("identity", 0.0) else None


def _quality(part: str) -> tuple[str, float]:
    """Of `gzip;q=0.5`; one that is malformed is not wanted."""
    name, _, parameter = part.partition(";")
    key, _, value = parameter.partition("=")
    if not parameter:
        return name.strip().lower(), 1.0
    try:
        quality = float(value) if key.strip().lower() == "q" else 0.0
    except ValueError:
        quality = 0.0
    return name.strip().lower(), quality
