"""What is asked, and of which services: the forms of a request, and pictures and bodies to make them of."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

KEYS = {name: f"key-of-{name}-0123456789" for name in ("alice", "bob", "carol", "dave", "erin")}
"""API keys of the strict service. Each caller has his own rate, so that only those who shall meet its end do."""

COMMON: dict[str, Any] = {"heartbeat_interval_ms": 50}
SERVICES: dict[str, dict[str, Any]] = {
    "open": {},
    "strict": {
        "model_control": True,
        "rate_limit_per_s": 0.00001,
        "rate_limit_burst": 16,
        "max_image_bytes": 20_000,
        "max_request_bytes": 70_000,
        "max_image_mpx": 1,
        "max_images": 4,
        "max_in_flight": 2,
    },
    "alone": {"worker_timeout_ms": 600_000},
}
"""Settings of the front-ends: `open` has the defaults, `strict` has API keys and small bounds, `alone` no worker."""


@dataclass(frozen=True)
class Http:
    """`held`: the device keeps its batches until there is an answer. `before`: how often it was asked already."""

    name: str
    line: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    service: str = "open"
    held: bool = False
    before: int = 0


@dataclass(frozen=True)
class Rpc:
    """`messages`: the fields of each request; more than one, or none, of a stream only. bytes: a message as it is."""

    name: str
    method: str
    messages: Sequence[Mapping[str, Any] | bytes] = ({},)
    metadata: Sequence[tuple[str, str]] = ()
    service: str = "open"
    held: bool = False
    before: int = 0


def png(grey: int = 7, width: int = 80, height: int = 60) -> bytes:
    """A picture of one grey level, encoded without compression: the same bytes whatever zlib there is."""
    return _png(np.full((height, width, 3), grey, np.uint8))


def gradient() -> bytes:
    """A picture without two equal columns, to draw an overlay on."""
    y, x = np.mgrid[0:120, 0:160]
    return _png(np.stack([x, y * 2, 255 - x], axis=2).astype(np.uint8))


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]], *, claims: tuple[int, int] | None = None) -> bytes:
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", *(claims or (width, height)), 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def huge() -> bytes:
    """A small file whose header claims a large picture."""
    return _png(np.zeros((2, 2, 3), np.uint8), claims=(20_000, 20_000))


def pillow(form: str, grey: int = 7, orientation: int | None = None) -> bytes:
    """A picture of 80 x 40 as Pillow encodes it."""
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PIL.Image.new("RGB", (80, 40), (grey, grey, grey)).save(file, form, exif=exif, quality=95)
    return file.getvalue()


def bmp(grey: int = 7) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (grey, grey, grey)).save(file, "BMP")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def document(**members: Any) -> bytes:  # noqa: ANN401
    return json.dumps(members).encode()


def form(*parts: tuple[str, bytes], end: bytes = b"--frontier--\r\n") -> bytes:
    heads = (f'--frontier\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n' for name, _ in parts)
    return b"".join(head.encode() + data + b"\r\n" for head, (_, data) in zip(heads, parts, strict=True)) + end


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


FORM = {"Content-Type": "multipart/form-data; boundary=frontier"}
JSON = {"Content-Type": "application/json"}

PICTURE = png()
NO_PICTURE = b"%PDF-1.7 not a picture"

COMMANDS = (
    "nothing",
    "rest",
    "serve --http-port x",
    "serve --nothing",
    "serve --models nothing --model-weights other=1",
    "serve --worker-address nowhere",
    "health",
    "health nothing",
    "models list",
    "models show convmlp_pets_breed",
    "models show convmlp_pets_outline --json",
    "models show nothing",
    "classify {png} --url {rest}",
    "classify {png} {pdf} --url {rest} --json",
    "detect {png} --url {rest} --model fake_instances",
    "segment {png} --url {grpc}",
    "classify {png} --url {grpc} --json --top-k 2",
    "classify {png} --url {grpc} --top-k 0",
    "classify {png} --url {rest} --model nothing",
    "classify missing.png --url {rest}",
    "classify {png} --url http://127.0.0.1:9",
)
"""Command lines; {png} and {pdf} are files, {rest} and {grpc} the addresses of the open service's front-ends."""
