"""What the service says of itself and its models, in the protocol's terms: JSON over HTTP, messages over gRPC.

Everything here is plain data with the names of the protocol's messages, so both say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from model.bundle import BundleConfig
from service.frontend.oip.outputs import outputs_of
from service.frontend.oip.pictures import INPUT
from service.frontend.oip.request import VERSION
from service.frontend.oip.statistics import ModelCounts
from service.frontend.oip.tensors import Datatype
from service.settings import Settings
from service.types import ModelStatus, StoredModel

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
