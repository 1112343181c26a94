"""Deploys the service on a running Ray cluster, and reads and ends what runs there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.cluster.config_file import Deployment
from service.cluster.environment import node_environment

os.environ.update({key: value for key, value in node_environment().items() if key not in os.environ})
# Ray reads its environment when it is imported.
import ray
from ray import serve

from service.cluster.app import build_application
from service.cluster.worker_part import ServeWorker

POLL_S = 1.0
CONNECT_S = 5.0
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
RUNNING = "RUNNING"


class ClusterError(Exception):
    """The cluster cannot be reached, or did not do what it was asked for; the message has the reason."""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A deployment of the application: its state, and its replicas by theirs."""

    name: str
    state: str
    message: str
    replicas: dict[str, int]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The application; `state` is empty where none is deployed. `nodes` are the addresses of those that are there."""

    state: str
    message: str
    parts: tuple[PartStatus, ...]
    nodes: tuple[str, ...]


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster whose head is at `address`, HOST:PORT or auto.

    Raises:
        ClusterError: there is none.
    """
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError("expected HOST:PORT, or auto")
            with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
                pass
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ClusterError(f"cannot reach a cluster at {address}: {reason}; `convmlp cluster up` starts one") from None
    try:
        yield
    finally:
        ray.shutdown()


def deploy(
    deployment: Deployment,
    timeout_s: float,
    on_progress: Callable[[ClusterStatus], None] = lambda _: None,
    serve_with: ServeWorker | None = None,
    restart: str = "",
) -> ClusterStatus:
    """Deploy an application, or update it replica by replica; wait until it runs. `serve_with` as in `WorkerPart`.

    Parts whose settings are as they were stay, with their replicas, unless `restart` is another text than before.

    Raises:
        ClusterError: it failed, or does not run after `timeout_s`. What ran before runs on.
    """
    serve.start(proxy_location="EveryNode", http_options={"host": deployment.host, "port": deployment.port})
    application = build_application(deployment.settings, serve_with, restart)
    target = serve.api.RunTarget(application, name=deployment.name, route_prefix=deployment.route_prefix)
    serve.api.run_many([target], wait_for_applications_running=False)
    end_s = time.monotonic() + timeout_s
    while True:
        status = cluster_status(deployment.name)
        on_progress(status)
        if status.state == RUNNING:
            return status
        if status.state in FAILED:
            raise ClusterError(f"the application is {status.state.lower()}: {status.message}")
        if time.monotonic() > end_s:
            raise ClusterError(
                f"the application is {status.state.lower() or 'not there'} after {timeout_s:g} s: {status.message}; "
                "`convmlp cluster status` shows how it goes on"
            )
        time.sleep(POLL_S)


def cluster_status(name: str) -> ClusterStatus:
    """What runs under the name of an application."""
    nodes = tuple(sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
    application = serve.status().applications.get(name)
    if application is None:
        return ClusterStatus("", "", (), nodes)
    parts = tuple(
        PartStatus(
            part,
            str(status.status.value),
            status.message,
            {str(getattr(state, "value", state)): count for state, count in status.replica_states.items()},
        )
        for part, status in sorted(application.deployments.items())
    )
    return ClusterStatus(str(application.status.value), application.message, parts, nodes)


def remove(name: str) -> bool:
    """Drain and end an application, and Serve with it if it was the last. False: there was none."""
    applications = serve.status().applications
    if name not in applications:
        return False
    serve.delete(name)
    if len(applications) == 1:
        serve.shutdown()
    return True
