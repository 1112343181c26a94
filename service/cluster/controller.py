"""The workers that Ray's controller reports, as the members of a front-end's pool."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import structlog

from service.wire.members import Members, following

ADDRESS = "worker_address"
"""Key of a worker's address in the metadata of its replica."""
LOOK_S = 2.0
"""Between two looks whether the controller still reports."""

log = structlog.get_logger(__name__)


def follow_controller(members: Members, app: str, groups: Collection[str]) -> AbstractAsyncContextManager[None]:
    """Reports the replicas of the deployments `groups` of a Serve application to `members`."""
    return following(members, _watch(members, app, groups))


async def _watch(members: Members, app: str, groups: Collection[str]) -> None:
    """Long-poll the controller, from a new client after each error: one ends with the controller that it asked."""
    import ray
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

    client: Any = None
    try:
        while True:
            if client is None or not client.is_running:
                try:
                    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
                except ValueError:
                    log.warning("there is no controller of Serve; the workers stay as they were reported last")
                else:
                    listeners = {
                        (LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(name=group, app_name=app)): partial(
                            _report, members, group
                        )
                        for group in groups
                    }
                    client = LongPollClient(
                        controller, listeners, call_in_event_loop=asyncio.get_running_loop(), client_id=f"convmlp-{app}"
                    )
            await asyncio.sleep(LOOK_S)
    finally:
        if client is not None:
            client.stop()


def _report(members: Members, group: str, targets: Any) -> None:  # noqa: ANN401  (Ray's DeploymentTargetInfo)
    addresses = [replica.replica_metadata.get(ADDRESS, "") for replica in targets.running_replicas]
    members.report(group, [address for address in addresses if address])
