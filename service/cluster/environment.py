"""The environment of Ray's nodes and of the replicas on them. Ray reads it when a process starts.

Nothing here imports Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from service.worker.compute_libraries import SPINS

RETRIED = "conn-failure empty-response"
"""Failures after which HAProxy sends a request to another front-end: nothing of an answer had come."""
UPLOAD_S = 30
"""How long a caller may take for a request, or for as much of it as is kept."""
_UNAVAILABLE = ("unavailable", "The service is not available", "no front-end can take the request at the moment")
ERRORS = {
    408: ("deadline-exceeded", "The deadline passed", "timed out before the upload finished"),
    **dict.fromkeys((502, 503, 504), _UNAVAILABLE),
}
"""What HAProxy answers itself, by its status: the last part of the problem's type, its title and detail."""
RETRY_AFTER_S = 2
BUFFER_BYTES = 128 * 2**10
"""A request of up to this size is kept until its answer begins, and can be sent again."""

HEAD_LOSS_S = 600
"""How long the processes of a node go on without the head. Ray's own 60 s are less than a machine takes to start."""


def node_environment(slow: bool = False) -> dict[str, str]:
    """What a node of the cluster needs in its environment. `slow`: for a machine with few cores, which starts slowly.

    HAProxy is the ingress: a Python proxy would cost several times as much as the front-end behind it. Ray's template
    for it lacks what keeps requests, callers' addresses and the form of errors; two of its values take more lines.
    """
    environment = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_RETRY_ON": "\n    ".join(
            (
                RETRIED,
                "option http-buffer-request",  # else a request is not whole when it is sent, and is not sent again
                f"timeout http-request {UPLOAD_S}s",  # for what is waited for here, and not in a front-end
                "option forwardfor",  # setting trusted_proxies
            )
        ),
        # Behind Ray's own pages for these, which are text/plain 500.
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n    ".join(("leastconn", *map(_error_page, ERRORS))),
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_LOSS_S),
    }
    if slow:
        environment |= {
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
        }
    return environment


def worker_environment(compute_threads: int) -> Mapping[str, str]:
    """What a worker's process needs before it starts; as `compute_libraries` sets it for workers of the command line.

    Ray sets OMP_NUM_THREADS from a replica's CPUs, unless it is set here.
    """
    environment = {"GOMP_SPINCOUNT": str(SPINS), "MKL_CBWR": "AUTO,STRICT"}
    if compute_threads:
        environment["OMP_NUM_THREADS"] = str(compute_threads)
    return environment


FRONT_END_ENVIRONMENT: Mapping[str, str] = {
    "OPENBLAS_NUM_THREADS": "1",  # a front-end's small NumPy products gain nothing from BLAS threads
    # The application runs on the event loop of its server: a second loop would pass each message between threads.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "GRPC_VERBOSITY": "ERROR",
}


def _error_page(status: int) -> str:
    """A line of HAProxy's configuration: its answer where it has none of a front-end."""
    kind, title, detail = ERRORS[status]
    detail = f"{detail}; send it again"
    body = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail, "error": detail}
    text = json.dumps(body)
    media_type = "content-type application/problem+json"
    return f"http-error status {status} {media_type} string '{text}' hdr Retry-After {RETRY_AFTER_S}"
