"""The Serve application: `convmlp cluster deploy` and `import_path: service.cluster.app:build` of a Serve config."""

# Serve reads the annotation of `build` as a class, which `from __future__ import annotations` would make a text.

import hashlib
import math
from importlib.metadata import version
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from service.cluster.environment import FRONT_END_ENVIRONMENT, worker_environment
from service.cluster.front_part import ClusterRest, FrontPart, GrpcPart
from service.cluster.settings import ClusterSettings, ModelGroup
from service.cluster.worker_part import LEAVE_S, OUTSTANDING, ServeWorker, WorkerPart
from service.settings import Settings

NO_LIMIT = 10**6
"""Of requests in a replica: the service refuses what is too much itself, with a problem+json and Retry-After."""
GRACE_S = 10.0
"""How long a replica may take to stop beyond its drain."""
LOGS = LoggingConfig(enable_access_log=False)
"""The service has its own access log, if it is on."""
POLICY = "service.cluster.app:scale_by_images"


def build(settings: ClusterSettings) -> serve.Application:
    """The application of `settings`.

    Raises:
        ValueError: they contradict each other.
    """
    return build_application(settings)


def build_application(
    settings: ClusterSettings, serve_with: ServeWorker | None = None, restart: str = ""
) -> serve.Application:
    """As `build`; `serve_with` as in `WorkerPart`. Another `restart` than before replaces all replicas."""
    front_end = settings.front_end_settings
    groups = [group.deployment for group in settings.groups]
    drain_s = front_end.drain_timeout_ms / 1000
    parts = [_worker_deployment(settings, group, serve_with, restart) for group in settings.groups]
    common: dict[str, Any] = {
        **_version_of(front_end, restart, *groups),
        "logging_config": LOGS,
        "max_ongoing_requests": NO_LIMIT,
        "max_queued_requests": -1,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": drain_s + GRACE_S,
        "ray_actor_options": {
            "num_cpus": settings.front_end_cpus,
            "runtime_env": {"env_vars": dict(FRONT_END_ENVIRONMENT)},
        },
    }
    if settings.grpc_front_ends:
        # The port of a node is free only when the old one has stopped.
        own = {**common, "max_surge_percent": 0, "max_replicas_per_node": 1, "num_replicas": settings.grpc_front_ends}
        parts.append(serve.deployment(GrpcPart).options(name="grpc", **own).bind(front_end, groups))
    rest = serve.ingress(ClusterRest(front_end, groups))(FrontPart)
    return serve.deployment(rest).options(name="rest", num_replicas=settings.front_ends, **common).bind(*parts)


def _worker_deployment(
    settings: ClusterSettings, group: ModelGroup, serve_with: ServeWorker | None, restart: str
) -> serve.Application:
    own = settings.worker_settings(group)
    options: dict[str, Any] = {
        **_version_of(own, restart),
        "logging_config": LOGS,
        "max_ongoing_requests": NO_LIMIT,
        "max_surge_percent": group.max_surge_percent,
        "graceful_shutdown_timeout_s": own.drain_timeout_ms / 1000 + LEAVE_S + GRACE_S,
        "health_check_period_s": 5.0,
        "ray_actor_options": {
            "num_cpus": group.cpus,
            "num_gpus": group.gpus,
            "resources": dict(group.resources),
            "runtime_env": {"env_vars": dict(worker_environment(own.compute_threads))},
        },
    }
    if (group.max_workers or 0) > group.min_workers:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=group.min_workers,
            max_replicas=group.max_workers,
            target_ongoing_requests=group.target_images,  # the policy reads its target here
            upscale_delay_s=group.upscale_delay_s,
            downscale_delay_s=group.downscale_delay_s,
            look_back_period_s=min(10.0, max(group.upscale_delay_s, 2.0)),
            metrics_interval_s=1.0,
            policy=AutoscalingPolicy(policy_function=POLICY),
        )
    else:
        options["num_replicas"] = group.min_workers
    return serve.deployment(WorkerPart).options(name=group.deployment, **options).bind(own, group.name, serve_with)


def _version_of(settings: Settings, *parts: str) -> dict[str, Any]:
    """The options of a deployment that name its version: replicas of the same one stay when others are deployed.

    Serve itself would give each deployment a new one, and replace all replicas where only their number changes.
    """
    text = "\n".join((version("convmlp-serving"), settings.model_dump_json(), *parts))
    return {"version": hashlib.sha256(text.encode()).hexdigest()[:16], "_internal": True}


def scale_by_images(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Serve's autoscaling policy: as many workers as have `target_ongoing_requests` images each, waiting or running."""
    images = (context.aggregated_metrics or {}).get(OUTSTANDING, {})
    if not images:  # no replica has reported yet
        return context.target_num_replicas, {}
    return math.ceil(sum(images.values()) / context.config.get_target_ongoing_requests()), {}
