"""What a service says of the models that it serves."""

from __future__ import annotations

from dataclasses import dataclass

from convmlp_client.results import Task


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. `default`: it answers where a request of its task names none. `labels` by class index.

    `ready`: it has just proven itself on a reference picture. `precision` is what the network computes in.
    """

    name: str
    task: Task
    default: bool
    ready: bool
    device: str
    precision: str
    labels: tuple[str, ...]
    weights_sha256: str
