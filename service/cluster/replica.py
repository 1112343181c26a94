"""What replicas of every kind share: the start of their process, their node's address, the keys of the wire."""

from __future__ import annotations

import gc
import json

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from service.observability.exposition import join_metrics
from service.observability.logs import configure_logs
from service.process import COLLECT_AFTER, allow_many_files, keep_freed_memory
from service.settings import Settings
from service.wire.curve import CurveKeys, make_keys

WIRE_KEYS = "convmlp-wire-keys"
"""Key, in the store of the cluster's head, of the pair that all replicas use."""


def start_process(settings: Settings, role: str) -> None:
    """As `run_process` for processes of the command line; signals and the event loop are Ray's."""
    keep_freed_memory()
    allow_many_files()
    configure_logs(settings.log_level, settings.log_format, role)
    join_metrics(role)
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def node_address() -> str:
    """The address of this node, at which the others reach it."""
    return str(ray.util.get_node_ip_address())


def node_addresses() -> tuple[str, ...]:
    """Those of all nodes that are there now."""
    return tuple(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])


def wire_keys(settings: Settings) -> CurveKeys | None:
    """The key pair of this cluster's wire, which the first replica makes. None: the settings name a file, or none.

    It stays the same while the cluster lives, so that old and new replicas of an update reach each other. Who can read
    the head's store can run code on every node.
    """
    if settings.wire_key_file is not None or settings.insecure_wire:
        return None
    made = json.dumps([key.decode("ascii") for key in make_keys()]).encode("ascii")
    _internal_kv_put(WIRE_KEYS, made, overwrite=False)
    public, secret = json.loads(_internal_kv_get(WIRE_KEYS))
    return CurveKeys(public.encode("ascii"), secret.encode("ascii"))
