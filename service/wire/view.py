"""What a front-end knows of one worker."""

from __future__ import annotations

from dataclasses import dataclass

from model.bundle import BundleConfig
from service.wire.messages import Phase

NO_WORKER = "there is no worker at the moment; one is being started"
NO_WORKER_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A model of one worker. `version` is the same on every worker that has the same config and weights."""

    version: str
    config: BundleConfig
    ready: bool
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class WorkerView:
    """`phase` is None where there is no worker, or it was lost; `offers` are what it serves, in its order, or served
    before it was lost, None where that was never heard."""

    phase: Phase | None
    reason: str
    retry_after_s: float
    offers: tuple[Offer, ...] | None

    def has_ready(self, version: str) -> bool:
        return any(offer.version == version and offer.ready for offer in self.offers or ())
