"""What Triton's statistics extension tells, counted over the requests of this protocol and this front-end alone.

A batch may hold images of other requests, protocols and front-ends: of how often the network ran each image counts its
part, one over the images that ran with it. `convmlp_batch_size` of the worker's metrics has the whole truth, so there
are no `batch_stats`.

What the service says of itself and its models, in the protocol's terms: JSON over HTTP, messages over gRPC.

Everything here is plain data with the names of the protocol's messages, so both say the same.

What the protocol asks of models beside inference: the same for both transports, as plain data (see `describe`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from model.bundle import BundleConfig
from service.errors import BadRequest, ModelNotFound, Unavailable
from service.frontend.api.oip.outputs import outputs_of
from service.frontend.api.oip.protocol import INPUT, VERSION, Datatype, check_version
from service.frontend.core.engine import Engine
from service.settings import Settings
from service.types import ModelStatus, StoredModel, Timings


@dataclass(slots=True)
class Duration:
    """How often, and how long in all, in ns."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)

    def told(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelCounts:
    """One model's. A request counts once whatever its number of images; each stage is its slowest image's."""

    images: int = 0
    executions: float = 0.0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def succeeded(self, batches: Sequence[int], seconds: float, timings: Timings) -> None:
        """`batches`: of each image the number of those that ran with it, itself among them."""
        self.images += len(batches)
        self.executions += sum(1 / images for images in batches)
        self.last_ms = round(time.time() * 1000)
        self.success.add(seconds)
        self.queue.add(timings.queue)
        self.compute_input.add(timings.decode)
        self.compute_infer.add(timings.infer)
        self.compute_output.add(timings.post)

    def failed(self, seconds: float) -> None:
        self.last_ms = round(time.time() * 1000)
        self.fail.add(seconds)

    def told(self) -> dict[str, Any]:
        """As the protocol has it."""
        never = Duration().told()
        return {
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": self.success.told(),
                "fail": self.fail.told(),
                "queue": self.queue.told(),
                "compute_input": self.compute_input.told(),
                "compute_infer": self.compute_infer.told(),
                "compute_output": self.compute_output.told(),
                "cache_hit": never,
                "cache_miss": never,
            },
            "batch_stats": [],
        }


class Statistics:
    """By model's name. Only names of served models are asked for, so they are few."""

    def __init__(self) -> None:
        self._models: dict[str, ModelCounts] = {}

    def of(self, model: str) -> ModelCounts:
        return self._models.setdefault(model, ModelCounts())


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
    "UINT8 [N, H, W, 3]: upright RGB pixels; or BYTES [N] or [N, 1]: an encoded image an element (JPEG, PNG, WebP, BMP "
    "or GIF)"
)


def server_metadata() -> dict[str, Any]:
    return {"name": DISTRIBUTION, "version": version(DISTRIBUTION), "extensions": list(EXTENSIONS)}


def model_metadata(config: BundleConfig) -> dict[str, Any]:
    """The protocol has one datatype for an input: the one whose every value is a picture is told."""
    outputs = [(output.name, output.datatype, output.dims) for output in outputs_of(config)]
    return {
        "name": config.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor(INPUT, Datatype.UINT8, IMAGE_DIMS)],
        "outputs": [_tensor(*output) for output in outputs],
    }


def model_config(status: ModelStatus, settings: Settings) -> dict[str, Any]:
    """Triton's model configuration, as far as it means something here; `dims` are without the batch's."""
    config = status.config
    facts = {
        "task": config.task.value,
        "image": IMAGE_FORMS,
        "precision": status.precision,
        "weights_sha256": config.weights_sha256,
    }
    return {
        "name": config.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        # Images of one request. The device's batches are formed of all requests that wait, and may be smaller.
        "max_batch_size": settings.max_images,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": list(IMAGE_DIMS)}],
        "output": [
            {"name": output.name, "data_type": CONFIG_TYPES[output.datatype], "dims": list(output.dims)}
            for output in outputs_of(config)
        ],
        "dynamic_batching": {
            # A device that is idle takes what there is.
            "max_queue_delay_microseconds": 0,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": settings.request_timeout_ms * 1000,
                "allow_timeout_override": True,
            },
        },
        "instance_group": _instances(config.name, status.devices),
        "parameters": {name: {"string_value": text} for name, text in facts.items()},
        "model_transaction_policy": {"decoupled": False},
    }


def _instances(name: str, devices: Sequence[str]) -> list[dict[str, Any]]:
    """The workers that answer for a model: on CPUs their number, on GPUs that of each GPU, and which these are."""
    gpus = sorted({int(device.partition(":")[2] or 0) for device in devices if device.startswith("cuda")})
    if gpus:
        return [{"name": f"{name}_0", "kind": "KIND_GPU", "count": len(devices) // len(gpus), "gpus": gpus}]
    return [{"name": f"{name}_0", "kind": "KIND_CPU", "count": len(devices)}] if devices else []


def model_statistics(name: str, counts: ModelCounts) -> dict[str, Any]:
    return {"name": name, "version": VERSION, **counts.told()}


def repository_entry(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": VERSION,
        "state": "READY" if model.ready else "UNAVAILABLE",
        "reason": model.reason,
    }


def _tensor(name: str, datatype: Datatype, dims: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype.value, "shape": [-1, *dims]}


NO_SHARED_MEMORY = "this service shares no memory with its callers; send and take tensors in the messages themselves"
NO_SETTINGS = "callers cannot change or read settings of logging and tracing here; the service's operator can"


class Catalogue:
    """Where a model is named its methods raise ModelNotFound for one that is not served, or for a version that there
    is not; all raise Unavailable while it is not known what is served."""

    def __init__(self, engine: Engine, settings: Settings, statistics: Statistics) -> None:
        self._engine = engine
        self._settings = settings
        self._statistics = statistics

    def status(self, name: str, version: str) -> ModelStatus:
        status = self._engine.model(name)
        check_version(name, version)
        return status

    def task_of(self, name: str) -> str:
        """For the metrics: the task of a served model, else nothing."""
        try:
            return self._engine.model(name).config.task.value
        except (ModelNotFound, Unavailable):
            return ""

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        return model_metadata(self.status(name, version).config)

    def config(self, name: str, version: str) -> dict[str, Any]:
        return model_config(self.status(name, version), self._settings)

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Of one model, or of all where none is named."""
        statuses = [self.status(name, version)] if name else self._engine.models()
        names = [status.config.name for status in statuses]
        return {"model_stats": [model_statistics(name, self._statistics.of(name)) for name in names]}

    async def index(self, *, only_ready: bool, deadline_s: float | None) -> list[dict[str, Any]]:
        """Everything in the worker's store. Raises what `Engine.repository` does."""
        models = await self._engine.repository(deadline_s)
        return [repository_entry(model) for model in models if model.ready or not only_ready]

    async def load(self, name: str, parameters: Collection[str], deadline_s: float | None) -> None:
        """Raises BadRequest where `parameters` would change the model, and what `Engine.load` does."""
        if parameters:
            raise BadRequest(
                f"a model is loaded as its bundle in the store describes it; {', '.join(sorted(parameters))[:80]!r} "
                "cannot be given"
            )
        await self._engine.load(name, deadline_s)

    async def unload(self, name: str, deadline_s: float | None) -> None:
        """Raises what `Engine.unload` does."""
        await self._engine.unload(name, deadline_s)
