"""What a bundle has beside its weights, stored in an exported checkpoint, so that an import gives the same model.

It is JSON under a key that no toolbox uses: in mmcv's `meta`, or as an attribute of a bare state dict, which stays one.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from model.bundle import CONFIG_FILE, WEIGHTS_FILE, Accuracy, BundleConfig, Sha256, Source
from model.errors import BundleInvalid, problem_text
from model.files import open_regular
from model.spec import Colour, Postprocessing, Preprocessing, Spec
from model.zoo.checkpoint_file import CheckpointFile

KEY = "convmlp_serving"
MAX_BYTES = 2**24


class StoredBundle(Spec):
    """The parts of a bundle's config that its weights do not imply.

    `tensors_sha256`: of the weights that they were exported with; source and accuracy are of these alone.
    """

    ADDED = frozenset({"palette"})

    labels: tuple[str, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    precision: Literal["fp32", "fp16", "bf16"]
    source: Source
    accuracy: Accuracy | None
    tensors_sha256: Sha256
    palette: tuple[Colour, ...] | None = None

    @classmethod
    def of(cls, config: BundleConfig, tensors: Mapping[str, Tensor]) -> Self:
        """Of a bundle and its tensors."""
        return cls(
            labels=config.labels,
            preprocessing=config.preprocessing,
            postprocessing=config.postprocessing,
            precision="fp32" if config.precision == "int8" else config.precision,
            source=config.source,
            accuracy=config.accuracy,
            tensors_sha256=tensors_sha256(tensors),
            palette=config.palette,
        )


def read_stored_bundle(file: CheckpointFile, tensors: Mapping[str, Tensor]) -> StoredBundle | None:
    """What an exported checkpoint has, or the config beside a bundle's own weights; None if there is neither.

    Raises:
        BundleInvalid: it was exported by another version, or damaged.
    """
    text = _text(file.content)
    try:
        if text is not None:
            return StoredBundle.model_validate_json(text)
        config = _config_beside(file)
        return None if config is None else StoredBundle.of(config, tensors)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise BundleInvalid(
            f"{file.path} has a pipeline of `convmlp models export` that this version cannot read: {where}: "
            f"{problem_text(first)}"
        ) from error


def with_stored_bundle(tensors: Mapping[str, Tensor], stored: StoredBundle, *, wrapped: bool) -> dict[str, object]:
    """The content of an exported checkpoint: as mmcv wraps it, or a bare state dict."""
    text = stored.model_dump_json(exclude=stored.added_defaults)  # so that earlier versions of this program read it
    if wrapped:
        meta: dict[str, object] = {"CLASSES": stored.labels, KEY: text}
        if stored.palette is not None:
            meta["PALETTE"] = [list(colour) for colour in stored.palette]
        return {"meta": meta, "state_dict": dict(tensors)}
    bare: OrderedDict[str, object] = OrderedDict(tensors)
    setattr(bare, KEY, text)
    return bare


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash over names, dtypes, shapes and values, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _text(content: object) -> str | None:
    if not isinstance(content, Mapping):
        return None
    meta = content.get("meta")
    text = meta.get(KEY) if isinstance(meta, Mapping) else getattr(content, KEY, None)
    return text if isinstance(text, str) and len(text) <= MAX_BYTES else None


def _config_beside(file: CheckpointFile) -> BundleConfig | None:
    """The config of the bundle that has this file as its weights."""
    path = file.path.with_name(CONFIG_FILE)
    if file.path.name != WEIGHTS_FILE or not path.is_file():
        return None
    with open_regular(path) as opened:
        text = opened.read(MAX_BYTES)
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return BundleConfig.model_validate_json(text) if isinstance(content, dict) and "weights_sha256" in content else None
