"""What `convmlp health` finds wrong."""

from __future__ import annotations

TIMEOUT_S = 5.0
"""How long each question may wait for its answer."""


class Unhealthy(Exception):
    """The part does not do its work, or is not alive; the message says why."""
