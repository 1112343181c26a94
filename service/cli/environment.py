"""Variables `CONVMLP_*` of the environment: which of them are no setting's, and which nothing reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from service.settings import Settings

PREFIX = "CONVMLP_"

COMMANDS = ("CONVMLP_URL", "CONVMLP_API_KEY")
"""Flags of the commands that call a service."""
PROCESSES = ("CONVMLP_METRICS_DIR", "CONVMLP_LIFELINE_FD", "CONVMLP_LISTEN_FD", "CONVMLP_ROLE")
"""What `convmlp serve` passes to the processes that it starts."""
COMPOSE = (
    "CONVMLP_PUBLISH_HTTP",
    "CONVMLP_PUBLISH_GRPC",
    "CONVMLP_PUBLISH_PROMETHEUS",
    "CONVMLP_PUBLISH_GRAFANA",
    "CONVMLP_TRACE_URL",
    "CONVMLP_GPU",
    "CONVMLP_MODEL_STORE",
    "CONVMLP_WORKER_MEMORY",
    "CONVMLP_FRONTEND_MEMORY",
    "CONVMLP_STOP_GRACE",
    "CONVMLP_VERSION",
    "CONVMLP_REVISION",
    "CONVMLP_SOURCE",
    "CONVMLP_WHEELS",
)
"""Of `.env.example`: compose reads them, and a shell that has read `.env` exports them."""

OTHERS = frozenset((*COMMANDS, *PROCESSES, *COMPOSE))

OF_SERVICES = re.compile(r"CONVMLP_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)")
"""What Kubernetes makes of the names of services, for every container beside them."""
ADDRESS = re.compile(r"(tcp|udp|sctp)://.+")
"""What it gives a variable whose name ends with _PORT."""
TESTS = "CONVMLP_TEST_"
"""Those of this project's tests begin so."""


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with each variable whose name begins like a setting's and that nothing reads."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHERS
    offered = known.difference(PROCESSES)
    return [
        f"there is no setting {name}{_similar(name, offered)}"
        for name, value in sorted(environment.items())
        if name.startswith(PREFIX) and name not in known and not _is_foreign(name, value)
    ]


def similar_setting(name: str) -> str:
    """What follows a name that is no setting's: `; did you mean NAME?`, or else where all names are."""
    return _similar(name, Settings.model_fields)


def _is_foreign(name: str, value: str) -> bool:
    if name.startswith(TESTS) or OF_SERVICES.fullmatch(name):
        return True
    return name.endswith("_PORT") and ADDRESS.fullmatch(value) is not None


def _similar(name: str, known: Iterable[str]) -> str:
    # Without the prefix: what all names share would make each of them similar.
    by_rest = {one.removeprefix(PREFIX): one for one in known}
    nearest = difflib.get_close_matches(name.removeprefix(PREFIX), by_rest, n=1)
    return f"; did you mean {by_rest[nearest[0]]}?" if nearest else "; `convmlp serve --help` has all"
