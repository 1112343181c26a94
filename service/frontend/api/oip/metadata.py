"""What clients may query and change besides inference: metadata, configuration, statistics, and the model repository.

Everything is plain data with the field names of the protocol's messages: JSON over HTTP, messages over gRPC.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from model.bundle import BundleConfig
from model.model_name import SEPARATOR, base_name, version_of
from service.errors import BadRequest, ModelNotFound
from service.frontend.api.oip.outputs import default_outputs, outputs_of
from service.frontend.api.oip.protocol import INPUT, Datatype
from service.frontend.core.engine import Engine
from service.settings import Settings
from service.types import ModelStatus, StoredModel, Timings

Fields = dict[str, Any]
"""The fields of a protocol message, by name."""

DISTRIBUTION = "convmlp-serving"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
PLATFORM = "convmlp_safetensors"
BACKEND = "convmlp"
CONFIG_TYPES = {datatype: f"TYPE_{datatype}" for datatype in Datatype} | {Datatype.BYTES: "TYPE_STRING"}

IMAGE_DIMS = (-1, -1, 3)
"""Of the input as UINT8: height, width, RGB."""
IMAGE_FORMS = (
    "UINT8 [N, H, W, 3]: upright RGB pixels; or BYTES [N] or [N, 1]: an encoded image an element (JPEG, PNG, WebP, "
    "BMP, GIF, AVIF, HEIC or TIFF)"
)

NO_SHARED_MEMORY = "shared memory is not supported; send and receive tensors in the messages themselves"
NO_SETTINGS = "clients cannot read or change the settings of logging and tracing; the service's operator can"


@dataclass(slots=True)
class ModelStatistics:
    """One model's counts over the requests of this protocol that this front-end answered.

    A request counts once whatever its number of images; each stage is its slowest image's. A batch may hold images of
    other requests, APIs and front-ends, so an image counts as 1/N of an execution, where N is the size of its batch.
    `convmlp_batch_size` of the worker's metrics counts batches, so there are no `batch_stats`.
    """

    images: int = 0
    executions: float = 0.0
    last_ms: int = 0
    """Unix time of the last request."""
    succeeded: int = 0
    succeeded_s: float = 0.0
    failed: int = 0
    failed_s: float = 0.0
    stages: Timings = field(default_factory=Timings)
    """Sums over the requests that succeeded."""

    def add(self, batch_images: Sequence[int], seconds: float, timings: Timings) -> None:
        """Count a request that succeeded. `batch_images`: for each image the size of its batch."""
        self.images += len(batch_images)
        for images in batch_images:
            self.executions += 1 / images
        self.last_ms = round(time.time() * 1000)
        self.succeeded += 1
        self.succeeded_s += seconds
        sums = self.stages
        self.stages = Timings(
            sums.decode + timings.decode,
            sums.queue + timings.queue,
            sums.infer + timings.infer,
            sums.post + timings.post,
        )

    def add_failed(self, seconds: float) -> None:
        self.last_ms = round(time.time() * 1000)
        self.failed += 1
        self.failed_s += seconds

    def fields(self, name: str) -> Fields:
        """The protocol's message. `name` may have a version."""
        return {
            "name": base_name(name),
            "version": version_of(name),
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": _duration(self.succeeded, self.succeeded_s),
                "fail": _duration(self.failed, self.failed_s),
                "queue": _duration(self.succeeded, self.stages.queue),
                "compute_input": _duration(self.succeeded, self.stages.decode),
                "compute_infer": _duration(self.succeeded, self.stages.infer),
                "compute_output": _duration(self.succeeded, self.stages.post),
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
            },
            "batch_stats": [],
        }


class ModelRepository:
    """The models that are served and stored. A model's name means the version that answers most requests for it.

    Where a model is named, the methods raise ModelNotFound if it is not served or has no such version. All raise
    Unavailable until a worker has reported its models.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self.statistics: defaultdict[str, ModelStatistics] = defaultdict(ModelStatistics)
        """By model and version; only served models are looked up, so they are few."""

    def reference(self, name: str, version: str) -> str:
        """What a request names, as the engine takes it. `version` is empty where it names none."""
        if not version:
            return name
        versions = [version_of(model.config.name) for model in self._engine.versions(name)]
        if SEPARATOR in name and version_of(name) != version:
            raise ModelNotFound(
                f"{name!r} names one version and the request another, {version[:20]!r}; give one of them"
            )
        if version not in versions:
            raise ModelNotFound(
                f"model {name!r} has no version {version[:20]!r}, only {', '.join(map(repr, versions))}"
            )
        return f"{base_name(name)}{SEPARATOR}{version}"

    def model(self, name: str, version: str) -> ModelStatus:
        return self._engine.model(self.reference(name, version))

    def metadata(self, name: str, version: str) -> Fields:
        config = self.model(name, version).config
        return model_metadata(config, [version_of(model.config.name) for model in self._engine.versions(name)])

    def config(self, name: str, version: str) -> Fields:
        return model_config(self.model(name, version), self._settings)

    def statistics_of(self, name: str = "", version: str = "") -> Fields:
        """Of one version, of all versions of a model, or of all served models where none is named."""
        if name and not version and SEPARATOR not in name:
            models = self._engine.versions(name)
        else:
            models = (self.model(name, version),) if name else self._engine.models()
        names = [model.config.name for model in models]
        return {"model_stats": [self.statistics[name].fields(name) for name in names]}

    async def index(self, *, only_ready: bool, deadline_s: float | None) -> list[Fields]:
        """Every model of the worker's store. Raises as `ModelControl.repository`."""
        models = await self._engine.control.repository(deadline_s)
        return [repository_entry(model) for model in models if model.ready or not only_ready]

    async def load(self, name: str, parameters: Collection[str], deadline_s: float | None) -> None:
        """Raises BadRequest where `parameters` would change the model, else as `ModelControl.load`."""
        if parameters:
            raise BadRequest(
                f"a model is loaded as its bundle describes it; remove the parameters "
                f"{', '.join(sorted(parameters))[:80]!r}"
            )
        await self._engine.control.load(name, deadline_s)

    async def unload(self, name: str, deadline_s: float | None) -> None:
        """Raises as `ModelControl.unload`."""
        await self._engine.control.unload(name, deadline_s)


def server_metadata() -> Fields:
    return {"name": DISTRIBUTION, "version": version(DISTRIBUTION), "extensions": list(EXTENSIONS)}


def model_metadata(config: BundleConfig, versions: Sequence[str]) -> Fields:
    """`versions`: those that are served.

    An input has one datatype in the protocol. It is UINT8, because any of its values are valid pixels.
    """
    outputs = [(output.name, output.datatype, output.dims) for output in default_outputs(config)]
    return {
        "name": base_name(config.name),
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_tensor(INPUT, Datatype.UINT8, IMAGE_DIMS)],
        "outputs": [_tensor(*output) for output in outputs],
    }


def model_config(model: ModelStatus, settings: Settings) -> Fields:
    """The fields of Triton's model configuration that apply here; `dims` are without the batch's."""
    config = model.config
    more = [output.name for output in outputs_of(config) if not output.default]
    name = base_name(config.name)
    facts = {
        "version": version_of(config.name),
        "task": config.task.value,
        "image": IMAGE_FORMS,
        "precision": model.precision,
        "weights_sha256": config.weights_sha256,
        **({"optional_outputs": ", ".join(more)} if more else {}),
    }
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": BACKEND,
        # Images of one request. The device's batches are formed of all requests that wait, and may be smaller.
        "max_batch_size": settings.max_images,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": list(IMAGE_DIMS)}],
        "output": [
            {"name": output.name, "data_type": CONFIG_TYPES[output.datatype], "dims": list(output.dims)}
            for output in default_outputs(config)
        ],
        "dynamic_batching": {
            # An idle device runs whatever waits.
            "max_queue_delay_microseconds": 0,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": settings.request_timeout_ms * 1000,
                "allow_timeout_override": True,
            },
        },
        "instance_group": _instances(name, model.devices),
        "parameters": {name: {"string_value": text} for name, text in facts.items()},
        "model_transaction_policy": {"decoupled": False},
    }


def _instances(name: str, devices: Sequence[str]) -> list[Fields]:
    """The workers of a model: on CPUs their number, on GPUs the number per GPU and the GPUs' indices."""
    gpus = sorted({int(device.partition(":")[2] or 0) for device in devices if device.startswith("cuda")})
    if gpus:
        return [{"name": f"{name}_0", "kind": "KIND_GPU", "count": len(devices) // len(gpus), "gpus": gpus}]
    return [{"name": f"{name}_0", "kind": "KIND_CPU", "count": len(devices)}] if devices else []


def repository_entry(model: StoredModel) -> Fields:
    return {
        "name": base_name(model.name),
        "version": version_of(model.name),
        "state": "READY" if model.ready else "UNAVAILABLE",
        "reason": model.reason,
    }


def _duration(count: int, seconds: float) -> Fields:
    return {"count": count, "ns": round(seconds * 1e9)}


def _tensor(name: str, datatype: Datatype, dims: tuple[int, ...]) -> Fields:
    return {"name": name, "datatype": datatype.value, "shape": [-1, *dims]}
