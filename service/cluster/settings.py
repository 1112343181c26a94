"""What a cluster runs: groups of workers, each with its models, and front-ends. `deploy/ray/serve.yaml` has an example.

Nothing here imports Ray.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from service.settings import EMBEDDED_MODELS, ServedName, Settings

OWN_SETTINGS = (
    *("worker_address", "workers", "rest_processes", "grpc_processes", "served_models_file", "models"),
    *("http_port", "host", "max_connections"),
)
"""Settings of the service that a cluster decides itself, by Ray or by its groups."""
NOT_IN_A_CLUSTER = {
    "model_control": "workers that start later would not have the models that callers loaded; name them in a group",
    "http_tls_certificate": "Ray's HAProxy speaks plain HTTP; end TLS at the load balancer in front of the cluster",
}


class ModelGroup(BaseModel):
    """Workers that serve the same models. Ray starts, places, restarts and scales them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")] = "all"
    """Names the deployment: `worker-NAME`."""
    models: Annotated[tuple[ServedName, ...], Field(min_length=1)] = EMBEDDED_MODELS
    """As --models of a worker."""
    min_workers: PositiveInt = 1
    """Workers that always run."""
    max_workers: PositiveInt | None = None
    """Workers at the most; by default as many as `min_workers`, and nothing scales."""
    target_images: PositiveInt = 32
    """Images that wait or run at one worker, beyond which another is started."""
    upscale_delay_s: NonNegativeFloat = 30.0
    """How long there are too many images before workers are started."""
    downscale_delay_s: NonNegativeFloat = 600.0
    """How long there are too few before workers are stopped."""
    gpus: NonNegativeFloat = 0.0
    """GPUs of one worker, which has no more than one; 0: it runs on the CPU."""
    cpus: NonNegativeFloat = 1.0
    """CPU cores of one worker. On a CPU its network has as many threads, at least one."""
    resources: dict[str, NonNegativeFloat] = {}
    """Ray's own resources that a node must have, such as {"a100": 1}: they place a group on certain nodes."""
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 100
    """Workers that an update may start before it stops as many old ones, in percent of the group. 0 stops first: for
    nodes without free GPUs."""
    settings: dict[str, Any] = {}
    """Settings of the service for these workers alone."""

    @model_validator(mode="after")
    def _bounds(self) -> ModelGroup:
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(
                f"group {self.name!r}: max_workers is {self.max_workers}, less than min_workers, {self.min_workers}"
            )
        if self.gpus > 1:
            raise ValueError(f"group {self.name!r}: gpus is {self.gpus:g}; a worker has one GPU at the most")
        return self

    @property
    def deployment(self) -> str:
        return f"worker-{self.name}"


class ClusterSettings(BaseModel):
    """What `convmlp cluster deploy` deploys: the arguments of Serve's application."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    groups: Annotated[tuple[ModelGroup, ...], Field(min_length=1, max_length=64)] = (ModelGroup(),)
    """Workers. A request goes to a group that has its model."""
    front_ends: PositiveInt = 1
    """REST front-ends."""
    front_end_cpus: NonNegativeFloat = 1.0
    """CPU cores of one front-end, which has as many threads for decoding, at least one."""
    grpc_front_ends: NonNegativeInt = 0
    """gRPC front-ends, at most one on a node. Each listens at `grpc_port` of its node."""
    settings: dict[str, Any] = {}
    """Settings of the service, by their names as in convmlp.toml."""

    @model_validator(mode="after")
    def _names(self) -> ClusterSettings:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"groups: there are {names.count(name)} groups named {name!r}; name each once")
        for where, given in (
            ("settings", self.settings),
            *((f"group {one.name!r}", one.settings) for one in self.groups),
        ):
            for name in OWN_SETTINGS:
                if name in given:
                    raise ValueError(f"{where}: {name} is not set in a cluster: Ray, or a group, decides it")
            for name, reason in NOT_IN_A_CLUSTER.items():
                if given.get(name):
                    raise ValueError(f"{where}: {name} cannot be used in a cluster: {reason}")
        for group in self.groups:
            self.worker_settings(group)  # raises ValueError
        return self

    @cached_property
    def front_end_settings(self) -> Settings:
        threads = max(1, math.floor(self.front_end_cpus))
        return Settings(**{"prepare_threads": threads, "access_log": False, **self.settings, "models": self.models})

    @property
    def models(self) -> tuple[str, ...]:
        """Of all groups, each once, in their order."""
        return tuple(dict.fromkeys(model for group in self.groups for model in group.models))

    def worker_settings(self, group: ModelGroup) -> Settings:
        """The settings of a group's workers."""
        own: dict[str, Any] = (
            {"compute_threads": max(1, math.floor(group.cpus))} if not group.gpus else {"device": "cuda"}
        )
        own["worker_metrics_port"] = 0
        return Settings(**{**own, **self.settings, **group.settings, "models": group.models})
