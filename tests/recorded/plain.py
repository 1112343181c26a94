"""Answers as text that is the same each time and on any processor, and whose differences can be read."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image

WIDTH = 110
"""JSON that is no longer than this stays on one line."""
MAX_SHOWN = 600
"""Bytes that are no text are shown up to this length, beyond it as their hash."""

_PNG = re.compile(rb"(..\0\0)?(\x89PNG\r\n\x1a\n.*?IEND\xaeB`\x82)", re.DOTALL)
_PNG_BASE64 = re.compile(rb"iVBORw0KGgo[A-Za-z0-9+/]+=*")
_TIMES = re.compile(rb'"(duration|time|\w+Ms)":[\d.e-]+')
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOSSY = (b"\xff\xd8\xff", b"RIFF")
_VOLATILE = (
    (re.compile(r"dur=[\d.]+"), "dur=<ms>"),
    (re.compile(r"batch;desc=\d+"), "batch;desc=<images>"),
    (re.compile(r"\b\d\.\d{3} s\b"), "<s> s"),
    (re.compile(r"127\.0\.0\.1:\d{4,}"), "127.0.0.1:<port>"),
    (re.compile(r"^(date|etag|last-modified): .*$", re.MULTILINE), r"\1: <\1>"),
    # Of a rate that gives nothing back for hours: what is left of them.
    (re.compile(r"^(retry-after: |trailing grpc-retry-pushback-ms: (?=\d{6}))\d{4,}$", re.MULTILINE), r"\1<long>"),
    (re.compile(r"\bseconds: \d{3,}\n\s*nanos: \d+$", re.MULTILINE), "seconds: <long>"),
    # Without a worker: as long as it has been missing for.
    (re.compile(r"^(retry-after: )(?:[2-9]|\d\d)$", re.MULTILINE), r"\1<measured>"),
    (re.compile(r"^(trailing grpc-retry-pushback-ms: )\d{4,5}$", re.MULTILINE), r"\1<measured>"),
    (re.compile(r"\bseconds: (?:[2-9]|\d\d)\n\s*nanos: \d+$", re.MULTILINE), "seconds: <measured>"),
    (
        re.compile(r"\bretry_delay \{\n(\s*)seconds: (?:[2-9]|\d\d)$", re.MULTILINE),
        r"retry_delay {\n\1seconds: <measured>",
    ),
)


def without_volatile(text: str) -> str:
    """An answer's text without what differs each time."""
    for pattern, word in _VOLATILE:
        text = pattern.sub(word, text)
    return text


def settled(data: bytes) -> bytes:
    """A hash of the pixels in place of each picture, because an encoder's version decides the rest; without times and
    random ids."""
    data = _UUID.sub(b"<uuid>", _TIMES.sub(rb'"\1":0', data))
    data = _PNG.sub(_png_of, data)
    data = _PNG_BASE64.sub(lambda found: picture_of(base64.b64decode(found[0])), data)
    return picture_of(data) if data.startswith(_LOSSY) else data


def _png_of(found: re.Match[bytes]) -> bytes:
    """A PNG, also with its length before it, as an element of a tensor."""
    before, png = found[1] or b"", found[2]
    return (b"<length>" if before == len(png).to_bytes(4, "little") else before) + picture_of(png)


def picture_of(data: bytes) -> bytes:
    picture = PIL.Image.open(io.BytesIO(data))
    pixels = np.asarray(picture)
    form = f"{picture.format} {picture.mode} {picture.width}x{picture.height}"
    return f"<{form}, pixels {hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}>".encode()


def text_of(data: bytes) -> str:
    """Bytes as text: as they are where they are UTF-8 and of lines that can be read, else escaped or as their hash."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text and (document := _compact_json(text)) is not None:
        return document
    if text and text.replace("\n", "").isprintable():
        return text
    if len(data) <= MAX_SHOWN:
        return repr(data)[2:-1] if data else ""
    return hash_of(data)


def hash_of(data: bytes) -> str:
    return f"<{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}>"


def _compact_json(text: str) -> str | None:
    """JSON that has no blanks, on several lines; None where the lines would hide a difference, or it is none."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict | list) or _one_line(document) != text:
        return None
    return pretty(document)


def _one_line(document: Any) -> str:  # noqa: ANN401
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def pretty(document: Any, indent: str = "") -> str:  # noqa: ANN401
    """JSON in the order that it has, short parts on one line."""
    short = json.dumps(document, ensure_ascii=False)
    if len(short) + len(indent) <= WIDTH or not isinstance(document, dict | list) or not document:
        return short
    within = f"{indent}  "
    if isinstance(document, list) and not any(isinstance(one, dict | list) for one in document):
        return "\n".join(
            ("[", *_filled([json.dumps(one, ensure_ascii=False) for one in document], within), f"{indent}]")
        )
    if isinstance(document, dict):
        rows = [f"{json.dumps(name, ensure_ascii=False)}: {pretty(one, within)}" for name, one in document.items()]
        return "{\n" + ",\n".join(f"{within}{row}" for row in rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{within}{pretty(one, within)}" for one in document) + f"\n{indent}]"


def joined(text: str) -> str:
    """Protobuf's text format, with consecutive lines of one field as one list."""
    lines: list[str] = []
    for (indent, name), group in itertools.groupby(text.splitlines(), _field_of):
        rows = list(group)
        if not name or len(rows) == 1:
            lines += rows
        else:
            values = [row.partition(": ")[2] for row in rows]
            lines += (f"{indent}{name}: [", *_filled(values, f"{indent}  "), f"{indent}]")
    return "\n".join(lines)


def _field_of(line: str) -> tuple[str, str]:
    match = re.match(r"( *)(\w+): ", line)
    return (match[1], match[2]) if match else ("", "")


def _filled(items: Sequence[str], indent: str) -> Iterator[str]:
    """Lines of as many items as there is room for."""
    line = indent + items[0]
    for item in items[1:]:
        if len(line) + len(item) + 2 > WIDTH:
            yield f"{line},"
            line = indent + item
        else:
            line += f", {item}"
    yield line


def member_names(document: Any, at: str = "") -> Iterator[str]:  # noqa: ANN401
    """The names of all members, for documents whose values differ each time."""
    if isinstance(document, dict):
        for name, one in document.items():
            yield from member_names(one, f"{at}.{name}" if at else name)
    elif isinstance(document, list):
        for one in document:
            yield from member_names(one, f"{at}[]")
    else:
        yield at


def metric_families(text: str) -> str:
    """Of Prometheus' text the families, the names of their labels, and the bounds of their buckets; no values."""
    lines: dict[str, None] = {}
    bounds: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "_created" in line:  # made or not by a switch of the library's, for the whole process
            continue
        if line.startswith("#"):
            lines[line] = None
            continue
        name, labels = re.match(r"(\w+)(?:\{(.*)\})?", line).groups()  # type: ignore[union-attr]
        pairs = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
        if (bound := pairs.pop("le", None)) is not None and bound not in bounds.setdefault(name, []):
            bounds[name].append(bound)
        lines[f"{name}{{{', '.join(pairs)}}}"] = None
    # Buckets are named by their sample, whose line they follow.
    return "\n".join(
        line + (f" le: {' '.join(bounds[name])}" if (name := line.partition("{")[0]) in bounds else "")
        for line in lines
    )
