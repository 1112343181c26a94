"""A model bundle: a folder with `config.json` and `model.safetensors`. Each version of a model is a bundle.

The config has all that belongs to the weights: architecture, labels, parameters of pre- and postprocessing, source,
measured accuracy, reference answer. It is read strictly; the weights' hash is checked; no pickle is ever read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, StringConstraints, ValidationError, model_validator

from model.errors import BundleInvalid, problem_text
from model.families.registry import Architecture, family_of, input_problem
from model.files import open_regular, replace_file
from model.model_name import ModelName, canonical_name
from model.reference import ReferenceAnswer
from model.spec import Colour, Postprocessing, Preprocessing, SegmentPostSpec, Spec
from model.types import Task

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EMBEDDED_DIR = Path(__file__).parent / "bundles"

StoredPrecision = Literal["fp32", "fp16", "bf16", "int8"]
"""int8: some of the layers' weights are, each with its scales; the others are float32."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Source(Spec):
    """Where the weights come from, and under which licence."""

    description: str
    url: str
    licence: str
    attribution: str


class Accuracy(Spec):
    """Measured figures, fractions of 1 unless the name has a unit, and the data they were measured on.

    `data_sha256`: of that data set, as `convmlp eval` prints it; None if it is not known.
    """

    ADDED = frozenset({"data_sha256"})

    metrics: dict[str, float]
    measured_on: str
    data_sha256: Sha256 | None = None


class Quantisation(Spec):
    """How a bundle of int8 weights was made.

    `made_from`: name and version of the model that it was made from. `pictures`: how many the ranges of the layers'
    inputs were measured on. `layers`: how many have int8 weights; `wide_layers`: names of those that could have, but
    are float32. `agreement`: shares of 1 in which its answers agree with those of `made_from` in float32, on
    `agreement_pictures` other pictures.
    """

    made_from: str
    pictures: PositiveInt
    layers: PositiveInt
    wide_layers: tuple[str, ...]
    agreement: dict[str, float]
    agreement_pictures: PositiveInt


class BundleConfig(Spec):
    """`config.json`. Class indices are positions in `labels` and in `palette`.

    `palette`: the colours in which classes are drawn. None: the drawing's own, which follow from the labels.
    """

    ADDED = frozenset({"palette"})

    format: Literal[1] = 1
    name: ModelName
    task: Task = Field(strict=False)
    architecture: Architecture
    labels: tuple[str, ...] = Field(min_length=1)
    palette: tuple[Colour, ...] | None = None
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    precision: StoredPrecision
    """The weights' dtype in the file; the worker chooses the precision that the network runs in."""
    source: Source
    accuracy: Accuracy | None = None
    quantisation: Quantisation | None = None
    reference: ReferenceAnswer
    weights_sha256: Sha256

    @property
    def version(self) -> str:
        """Identifies what answers: 16 hex digits of a hash over the config without figures; it has the weights' hash.

        It stays as it is when the model is measured, and when a new version of this program adds fields with defaults
        to pipelines. How int8 weights were made is left out, as figures are.
        """
        parts = {"preprocessing": self.preprocessing, "postprocessing": self.postprocessing}
        left_out: dict[str, set[str] | bool] = {name: part.added_defaults for name, part in parts.items()}
        left_out |= dict.fromkeys((*self.added_defaults, "quantisation"), True)
        unmeasured = self.model_copy(update={"accuracy": None})
        return hashlib.sha256(unmeasured.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]

    @property
    def embedding_dimension(self) -> int | None:
        """Length of the embeddings of a classifier; None for models of other tasks."""
        return self.architecture.backbone.embedding_dimension if self.task is Task.CLASSIFY else None

    @property
    def pixel_threshold(self) -> float | None:
        """Of a segmenter that was trained with one output channel; None for other models."""
        return self.postprocessing.threshold if isinstance(self.postprocessing, SegmentPostSpec) else None

    @model_validator(mode="after")
    def _same_task_everywhere(self) -> Self:
        tasks = {
            "architecture": family_of(self.architecture).task,
            "postprocessing": Task(self.postprocessing.task),
            "reference": Task(self.reference.task),
        }
        for part, task in tasks.items():
            if task != self.task:
                raise ValueError(f"{part} is for task {task.value}, the bundle's task is {self.task.value}")
        return self

    @model_validator(mode="after")
    def _each_class_has_a_colour(self) -> Self:
        if self.palette is not None and len(self.palette) != len(self.labels):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.labels)} labels")
        return self

    @model_validator(mode="after")
    def _int8_weights_have_ranges(self) -> Self:
        if (self.precision == "int8") != (self.quantisation is not None):
            raise ValueError("quantisation belongs to precision int8, and to no other one")
        return self

    @model_validator(mode="after")
    def _inputs_fit_the_backbone(self) -> Self:
        if self.task is not Task.CLASSIFY and not self.architecture.backbone.has_levels:
            raise ValueError("the backbone has no feature levels: it can be a classifier only")
        if problem := input_problem(self.architecture.backbone, self.preprocessing):
            raise ValueError(problem)
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk with a valid config. `model/net/weights.py` reads its weights."""

    folder: Path
    config: BundleConfig

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHTS_FILE


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's config and check its weights' hash.

    Raises:
        BundleInvalid: a file is missing, the config is not valid, the folder does not have the model's name, or the
            weights do not have the hash in the config.
    """
    config_path = folder / CONFIG_FILE
    try:
        with open_regular(config_path) as file:
            config = BundleConfig.model_validate_json(file.read())
        digest = file_sha256(folder / WEIGHTS_FILE)
    except OSError as error:
        raise BundleInvalid(
            f"bundle {folder}: cannot read {error.filename}: {error.strerror}; a bundle is a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {problem_text(e)}" for e in error.errors()[:5]
        )
        raise BundleInvalid(f"bundle {folder}: {CONFIG_FILE} is not valid: {problems}") from error
    if config.name != folder.name:
        raise BundleInvalid(f"bundle {folder}: the folder must have the name in its config, {config.name!r}; rename it")
    if digest != config.weights_sha256:
        raise BundleInvalid(
            f"bundle {folder}: {WEIGHTS_FILE} has SHA-256 {digest}, {CONFIG_FILE} expects "
            f"{config.weights_sha256}; fetch the bundle again"
        )
    return Bundle(folder, config)


def require_writable(bundle: Bundle) -> None:
    """Raises BundleInvalid for an embedded bundle."""
    if bundle.folder.parent == EMBEDDED_DIR:
        raise BundleInvalid(
            f"{bundle.config.name} is embedded in the program and is not changed; copy {bundle.folder} into a folder "
            "of models, and name that with --models-dir"
        )


def write_accuracy(bundle: Bundle, accuracy: Accuracy) -> Bundle:
    """Replace the figures in a bundle's config, as a whole or not at all.

    Raises:
        BundleInvalid: the bundle is embedded, or its config cannot be written.
    """
    require_writable(bundle)
    config = bundle.config.model_copy(update={"accuracy": accuracy})
    path = bundle.folder / CONFIG_FILE
    try:
        replace_file(path, config.model_dump_json(indent=2).encode() + b"\n", path.stat().st_mode & 0o777)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be written: {error.strerror}") from error
    return Bundle(bundle.folder, config)


ADDED = "`convmlp models pull` and `import` put others into the folder --models-dir"


def find_bundle(name: str, models_dir: Path | None) -> Path:
    """The folder of a model's bundle: in `models_dir`, else among the embedded bundles. `name` may have a version.

    Raises:
        BundleInvalid: neither has the model.
    """
    folder = canonical_name(name)
    for root in (models_dir, EMBEDDED_DIR):
        if root is not None and (root / folder / CONFIG_FILE).exists():
            return root / folder
    known = ", ".join(bundle_names(models_dir)) or "none"
    raise BundleInvalid(f"there is no model {folder!r} in the store; known: {known}; {ADDED}")


def bundle_names(models_dir: Path | None) -> list[str]:
    """Sorted names of all bundles in `models_dir` and of the embedded ones."""
    roots = [root for root in (models_dir, EMBEDDED_DIR) if root is not None and root.is_dir()]
    return sorted({path.parent.name for root in roots for path in root.glob(f"*/{CONFIG_FILE}")})


def file_sha256(path: Path) -> str:
    """A regular file's SHA-256 in lower-case hex. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
