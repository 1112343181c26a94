"""Rows as Parquet: the members of a row's JSON as typed, nested columns. Pictures in base64 become bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from model.postprocess.masks import MaskFormat
from model.types import Task
from service.batch.manifest import ModelEntry
from service.batch.storage import require_pyarrow

GROUP_ROWS = 5_000
"""Rows of a row group, which are in memory at once."""


def write_parquet(lines: Path, target: Path, models: Sequence[ModelEntry]) -> None:
    """Write rows of JSON as a Parquet file.

    Args:
        lines: the rows, a line each.
        target: the file to write.
        models: whose answers the rows have.

    Raises:
        OSError: it cannot be written.
        PackageMissing: pyarrow is not installed.
    """
    require_pyarrow(".parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = row_schema(models)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for rows in _groups(lines):
            writer.write_table(pa.Table.from_pylist([_typed(row, models) for row in rows], schema))


def read_parquet_heads(source: BinaryIO) -> Iterator[bytes]:
    """The rows of a file as JSON with their ids and errors alone. Raises OSError, PackageMissing."""
    require_pyarrow(".parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with source, pq.ParquetFile(source) as file:
            names = {column.path for column in file.schema}
            wanted = [name for name in names if name == "id" or name.endswith("error.type")]
            for batch in file.iter_batches(GROUP_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    yield msgspec.json.encode(_without_none(row))
    except pa.ArrowException as error:
        yield str(error).encode()  # no row, so that its reader reports a damaged one


def row_schema(models: Sequence[ModelEntry]) -> Any:  # noqa: ANN401  (pyarrow has no types)
    """The columns: `id`, those of the model's answer or `answers` with one of each, and `error`."""
    import pyarrow as pa

    image = pa.struct([("width", pa.int32()), ("height", pa.int32())])
    problem = pa.struct(
        [(name, pa.int32() if name == "status" else pa.string())
         for name in ("type", "title", "status", "detail", "instance", "error")]
    )  # fmt: skip
    columns = [("id", pa.string()), ("image", image)]
    if len(models) == 1:
        columns += _answer_fields(models[0])
    else:
        answers = [
            (one.answer, pa.struct([("image", image), *_answer_fields(one), ("error", problem)])) for one in models
        ]
        columns.append(("answers", pa.struct(answers)))
    return pa.schema([*columns, ("error", problem)])


def _answer_fields(model: ModelEntry) -> list[tuple[str, Any]]:
    import pyarrow as pa

    label = [("label", pa.string()), ("index", pa.int32())]
    mask = _mask_field(model.parameters)
    match Task(model.task):
        case Task.CLASSIFY:
            return [("labels", pa.list_(pa.struct([*label, ("score", pa.float64())])))]
        case Task.DETECT:
            box = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
            return [("detections", pa.list_(pa.struct([*label, ("score", pa.float64()), ("box", box), *mask])))]
        case Task.SEGMENT:
            fields = [*label, ("area", pa.int64()), ("confidence", pa.float64()), *mask]
            more = [("confidence_map", pa.binary())] if model.parameters.get("confidence_map") else []
            return [("segments", pa.list_(pa.struct(fields))), *more]


def _mask_field(parameters: dict[str, Any]) -> list[tuple[str, Any]]:
    import pyarrow as pa

    match MaskFormat(parameters["mask_format"]) if "mask_format" in parameters else MaskFormat.NONE:
        case MaskFormat.RLE:
            return [("mask", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]))]
        case MaskFormat.PNG:
            return [("mask", pa.binary())]
        case MaskFormat.POLYGON:
            return [("mask", pa.list_(pa.list_(pa.int32())))]
        case MaskFormat.NONE:
            return []


def _typed(row: dict[str, Any], models: Sequence[ModelEntry]) -> dict[str, Any]:
    """A row whose pictures in base64 are bytes."""
    answers = [row] if len(models) == 1 else row.get("answers", {}).values()
    for answer in answers:
        for item in (*answer.get("detections", ()), *answer.get("segments", ())):
            if isinstance(item.get("mask"), str):
                item["mask"] = base64.b64decode(item["mask"])
        if "confidence_map" in answer:
            answer["confidence_map"] = base64.b64decode(answer["confidence_map"])
    return row


def _groups(lines: Path) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    with lines.open("rb") as file:
        for line in file:
            rows.append(msgspec.json.decode(line))
            if len(rows) == GROUP_ROWS:
                yield rows
                rows = []
    if rows:
        yield rows


def _without_none(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        found = {name: _without_none(one) for name, one in value.items()}
        return {name: one for name, one in found.items() if one not in (None, {})}
    return value
