"""`manifest.json` of a folder of results: what it is of, and how far the job came."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec

from service.batch.folders import ResultsFolder, ResultsInvalid
from service.batch.plan import Plan

MANIFEST_FILE = "manifest.json"
SOFTWARE = f"convmlp-serving {version('convmlp-serving')}"


class ModelEntry(msgspec.Struct, frozen=True):
    """A model, in one state, with its parameters. `answer`: the name of its answers where there are several."""

    answer: str
    model: str
    task: str
    version: str
    weights_sha256: str
    precision: str
    parameters: dict[str, Any]


class JobEntry(msgspec.Struct, frozen=True):
    """What a folder's results are of; a job with another entry is refused there. The columns are Parquet's, as the
    user named them: other ones have other pictures, or other ids for the same."""

    source: str
    format: str
    models: tuple[ModelEntry, ...]
    image_column: str | None = None
    id_column: str | None = None

    @classmethod
    def of(
        cls,
        source: str,
        output_format: str,
        plan: Plan,
        image_column: str | None = None,
        id_column: str | None = None,
    ) -> JobEntry:
        models = (
            ModelEntry(
                one.answer, one.name, one.task.value, one.version, one.weights_sha256, one.precision, one.parameters
            )
            for one in plan.models
        )
        # As JSON has it, where tuples are lists.
        entry = cls(source, output_format, tuple(models), image_column, id_column)
        return msgspec.json.decode(msgspec.json.encode(entry), type=cls)

    @property
    def precisions(self) -> dict[str, str]:
        """By the names of the models."""
        return {one.model: one.precision for one in self.models}

    def differences(self, other: JobEntry) -> list[str]:
        """Where two jobs differ, as text: this one's value, then the other's."""
        pairs: list[tuple[str, Any, Any]] = [
            ("source", self.source, other.source),
            ("format", self.format, other.format),
            ("image column", self.image_column, other.image_column),
            ("id column", self.id_column, other.id_column),
        ]
        mine, theirs = [[msgspec.structs.asdict(one) for one in entry.models] for entry in (self, other)]
        if [one["answer"] for one in mine] != [one["answer"] for one in theirs]:
            names = [", ".join(one["answer"] for one in models) for models in (mine, theirs)]
            pairs.append(("answers", names[0], names[1]))
        else:
            for before, now in zip(mine, theirs, strict=True):
                before, now = ({**one.pop("parameters"), **one} for one in (before, now))
                pairs += [(name, before.get(name), now.get(name)) for name in dict.fromkeys((*before, *now))]
        return [f"{name.replace('_', ' ')} {before}, now {now}" for name, before, now in pairs if before != now]


class Manifest(msgspec.Struct, frozen=True):
    """`pictures`: rows, those with an error included. `errors`: how many there are of each code. `transient_errors`:
    rows whose errors another run may not have. `repeats`: pictures that were left out because another one has their id.
    `listing_sha256`: of the names of the source's files once all are scored. `seconds`: of all runs together. `writer`:
    of a run that writes to an object store, or that ended without notice."""

    job: JobEntry
    finished: bool = False
    pictures: int = 0
    errors: dict[str, int] = {}
    transient_errors: int = 0
    repeats: int = 0
    seconds: float = 0.0
    devices: tuple[str, ...] = ()
    listing_sha256: str = ""
    software: str = SOFTWARE
    writer: str = ""
    format_version: int = 1

    def write(self, folder: ResultsFolder) -> None:
        """Raises OSError, StorageFailed."""
        folder.write(MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def read_manifest(folder: ResultsFolder) -> Manifest | None:
    """The manifest of a folder; None if it has none.

    Raises:
        ResultsInvalid: it is damaged, or cannot be read.
    """
    try:
        content = folder.read(MANIFEST_FILE)
        return None if content is None else msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ResultsInvalid(
            f"{folder}/{MANIFEST_FILE} is not a manifest of results: {error}; name another folder"
        ) from error
    except OSError as error:
        raise ResultsInvalid(f"{folder}/{MANIFEST_FILE} cannot be read: {error.strerror}") from error
