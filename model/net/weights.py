"""A bundle's weights: loading them into a network, and writing a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from model.bundle import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Accuracy,
    Bundle,
    BundleConfig,
    Quantisation,
    Source,
    StoredPrecision,
    file_sha256,
)
from model.errors import BundleInvalid
from model.families.registry import Architecture, family_of
from model.files import open_regular
from model.net.quantisation import InputRange, InputRanges, dequantised_tensors, quantised_tensors
from model.reference import ClassifyReference, DetectReference, ReferenceAnswer, SegmentReference
from model.spec import Postprocessing, Preprocessing
from model.types import Palette, Task

DtypeName = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_LISTED = 5
"""Tensors listed in an error."""

_NO_REFERENCE: dict[Task, ReferenceAnswer] = {
    Task.CLASSIFY: ClassifyReference(labels=()),
    Task.DETECT: DetectReference(detections=()),
    Task.SEGMENT: SegmentReference(grid=()),
}


def load_weights(network: nn.Module, bundle: Bundle) -> None:
    """Load a bundle's `model.safetensors`, of any float dtype, into a network. Keys must match exactly.

    int8 weights are loaded as the floats that they stand for.

    Raises:
        BundleInvalid: the file cannot be read, or its tensors do not match the network's; lists them.
    """
    found, _ = _read_weights(bundle)
    if problems := state_dict_mismatch(network, found):
        raise BundleInvalid(
            f"bundle {bundle.folder}: {WEIGHTS_FILE} does not fit the architecture in {CONFIG_FILE}: {problems}"
        )
    network.load_state_dict(found)


def read_input_ranges(bundle: Bundle) -> dict[str, InputRange]:
    """The ranges of the inputs of the layers with int8 weights. Raises BundleInvalid: the file cannot be read."""
    return _read_weights(bundle)[1]


def _read_weights(bundle: Bundle) -> tuple[dict[str, Tensor], dict[str, InputRange]]:
    try:
        open_regular(bundle.weights_path).close()  # the library opens whatever it is given
        found = safetensors.torch.load_file(bundle.weights_path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleInvalid(f"bundle {bundle.folder}: cannot read {WEIGHTS_FILE}: {error}") from error
    if bundle.config.precision != "int8":
        return found, {}
    try:
        return dequantised_tensors(found)
    except ValueError as error:
        raise BundleInvalid(f"bundle {bundle.folder}: {WEIGHTS_FILE} is damaged: {error}") from error


def state_dict_mismatch(network: nn.Module, found: Mapping[str, Tensor]) -> str:
    """Which tensors differ from the network's in name, shape or kind of number; empty if all match."""
    expected: dict[str, Tensor] = network.state_dict()
    problems = [
        *(f"{name} is missing" for name in expected if name not in found),
        *(f"{name} is unexpected" for name in found if name not in expected),
        *(
            f"{name} is {_kind(found[name])}, expected {_kind(tensor)}"
            for name, tensor in expected.items()
            if name in found and _kind(found[name]) != _kind(tensor)
        ),
    ]
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    return "; ".join(problems[:MAX_LISTED]) + more


@dataclass(frozen=True, slots=True)
class BundleMetadata:
    """The parts of `config.json` that are known before the weights are written."""

    name: str
    architecture: Architecture
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    precision: StoredPrecision
    source: Source
    accuracy: Accuracy | None
    quantisation: Quantisation | None = None
    palette: Palette | None = None

    @classmethod
    def of(cls, config: BundleConfig) -> Self:
        """Those of a bundle, to write it again with other weights."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def config(self, reference: ReferenceAnswer | None, weights_sha256: str) -> BundleConfig:
        """The whole config. `reference` None: an empty one, which every answer passes.

        Raises:
            pydantic.ValidationError: a value is not valid, or the parts are of different tasks.
        """
        task = family_of(self.architecture).task
        return BundleConfig(
            name=self.name,
            task=task,
            architecture=self.architecture,
            labels=self.labels,
            palette=self.palette,
            preprocessing=self.preprocessing,
            postprocessing=self.postprocessing,
            precision=self.precision,
            source=self.source,
            accuracy=self.accuracy,
            quantisation=self.quantisation,
            reference=_NO_REFERENCE[task] if reference is None else reference,
            weights_sha256=weights_sha256,
        )


def write_bundle(
    store: Path,
    metadata: BundleMetadata,
    network: nn.Module,
    answer: Callable[[Bundle], ReferenceAnswer],
    ranges: InputRanges = MappingProxyType({}),
) -> Bundle:
    """Write the folder `store`/`metadata.name`, whole or not at all; one of that name is replaced.

    Args:
        store: a folder of bundles.
        metadata: the config's.
        network: its state dict is written, floats as `metadata.precision`.
        ranges: of the inputs of the layers whose weights are written as int8; only with that precision.
        answer: given the bundle as it will be read, but without a reference, its answer on the reference
            picture; so the answer is that of the weights as rounded in the file.

    Raises:
        pydantic.ValidationError: a value is not valid, or the parts are of different tasks.
        OSError: the folder cannot be written.
    """
    dtype = torch.float32 if metadata.precision == "int8" else DTYPES[metadata.precision]
    tensors = {
        key: (tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()).contiguous()
        for key, tensor in network.state_dict().items()
    }
    tensors = quantised_tensors(tensors, ranges)
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=f".{metadata.name}-") as scratch:
        folder = Path(scratch) / metadata.name
        folder.mkdir()
        safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)
        (folder / WEIGHTS_FILE).chmod(0o644)  # the service may run as another user
        digest = file_sha256(folder / WEIGHTS_FILE)
        reference = answer(Bundle(folder, metadata.config(None, digest)))
        config = metadata.config(reference, digest)
        (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        target = store / metadata.name
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        folder.rename(target)
    return Bundle(target, config)


def _kind(tensor: Tensor) -> str:
    number = "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"
    return f"{number} {tuple(tensor.shape)}"
