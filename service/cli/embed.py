"""`convmlp embed DIR --out vectors.npy`: the vectors of many images, with their names, in one file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.cli.console import counted, print_error, print_output, printable
from service.cli.options import (
    BackendOptions,
    Given,
    Images,
    output_flag,
    parameter_flag,
    shared_flags,
)
from service.cli.predict import open_backend

if TYPE_CHECKING:
    from convmlp_client.results import Embedding
    from service.cli.backends import Backend
    from service.cli.inputs import ImageFile
    from service.settings import Settings

Out = Annotated[
    Path,
    output_flag(
        help="File for the vectors: .npy, with the names of the images in a .json file beside it; or .parquet, which "
        "has both, and needs pyarrow."
    ),
]
Model = Annotated[str | None, parameter_flag(help="Name of a classifier. Default: the default model for classify.")]
Normalize = Annotated[bool, parameter_flag("--normalize/--no-normalize", help="Scale vectors to a length of 1.")]


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of one model, a row for each name."""

    model: str
    names: list[str]
    rows: list[Embedding]


@shared_flags("model", model=Model)
def embed(images: Images, *, out: Out, given: Given, normalize: Normalize = False, backend: BackendOptions) -> None:
    """Embed images: write a classifier's features of each, as vectors to search, cluster or train with."""
    from service.cli.inputs import image_files

    write = WRITERS.get(out.suffix.lower())
    if write is None:
        raise typer.BadParameter(f"--out {printable(str(out))} does not end with one of {', '.join(WRITERS)}")
    if write is write_parquet and find_spec("pyarrow") is None:
        raise typer.BadParameter(
            "--out .parquet needs pyarrow, which is not installed; install this package's extra `parquet`, or "
            "write .npy"
        )
    files = image_files(images)
    given["normalize"] = normalize
    try:
        vectors, status = asyncio.run(_embed_all(_open_backend(given, backend), files))
        if vectors is None:
            raise typer.Exit(status)
        if write is write_npy:
            _replace(out.with_suffix(".json"), vectors, write_names)
        _replace(out, vectors, write)
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except OSError as error:
        print_error(f"{out}: cannot be written: {error.strerror}")
        raise typer.Exit(1) from None
    print_output(printable(f"{counted(len(vectors.rows), 'vector')} of {len(vectors.rows[0].vector)} numbers -> {out}"))
    if status:
        raise typer.Exit(status)


def _open_backend(given: Given, options: BackendOptions) -> Backend:
    from service.cli.backends import LocalBackend, RemoteBackend
    from service.frontend.api.rest.embed import EmbedQuery, read_embed_query

    def load(query: EmbedQuery, settings: Settings) -> Backend:
        return LocalBackend(query, Task.CLASSIFY, settings)

    return open_backend(options, "embed", given, RemoteBackend, read_embed_query, load)


async def _embed_all(backend: Backend, files: Sequence[ImageFile]) -> tuple[Vectors | None, int]:
    """The vectors of the images that have one, in their order, or None if none has; and the exit status.

    Errors are printed. After Ctrl-C there are the vectors that came before.

    Raises:
        NoAnswer: different models answered.
    """
    from convmlp_client.results import Embedding
    from service.cli.backends import NoAnswer
    from service.cli.output import predict_all

    names: list[str] = []
    rows: list[Embedding] = []

    def take(image: ImageFile, outcome: object) -> bool:
        if isinstance(outcome, Embedding):
            names.append(image.name.encode("utf-8", "replace").decode())
            rows.append(outcome)
        return isinstance(outcome, Embedding)

    async with aclosing(backend):
        status = await predict_all(backend.predict, files, backend.concurrency, take)
    models = {row.meta.model for row in rows}
    if len(models) > 1:
        raise NoAnswer(f"the service changed its model meanwhile ({', '.join(sorted(models))}); name one with --model")
    return (Vectors(models.pop(), names, rows) if rows else None), status


def _replace(out: Path, vectors: Vectors, write: Callable[[Path, Vectors], None]) -> None:
    """Write a file as a whole: nothing that reads it sees a part. Raises OSError."""
    part = out.with_name(f".{out.name}.part")
    try:
        write(part, vectors)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def write_npy(path: Path, vectors: Vectors) -> None:
    """float32 (n, d), in NumPy's format."""
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.stack([row.vector for row in vectors.rows]))


def write_names(path: Path, vectors: Vectors) -> None:
    """The model, and the image of each row."""
    import msgspec

    path.write_bytes(msgspec.json.encode({"model": vectors.model, "names": vectors.names}))


def write_parquet(path: Path, vectors: Vectors) -> None:
    """Columns `name` and `embedding`, a list of as many float32 as the model has; the metadata have `model`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.concatenate([row.vector for row in vectors.rows])
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(numbers, pa.float32()), len(vectors.rows[0].vector))
    table = pa.table({"name": pa.array(vectors.names, pa.string()), "embedding": embedding})
    pq.write_table(table.replace_schema_metadata({"model": vectors.model}), path)


WRITERS: dict[str, Callable[[Path, Vectors], None]] = {".npy": write_npy, ".parquet": write_parquet}
"""By the suffix of the file."""
