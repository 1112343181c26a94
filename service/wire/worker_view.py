"""What a front-end knows of one worker.

What a front-end knows of a worker's models.

What several workers say, as one: pure functions of their views. Of a single worker they change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from model.bundle import BundleConfig
from service.types import ModelStatus, Readiness, StoredModel
from service.wire.messages import MalformedMessage, ModelState, Phase, State

NO_WORKER = "there is no worker at the moment; one is being started"
NO_WORKER_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class ServedModel:
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
    offers: tuple[ServedModel, ...] | None

    def has_ready(self, version: str) -> bool:
        return any(offer.version == version and offer.ready for offer in self.offers or ())


MAX_CONFIGS = 64
"""Configs that are kept besides the served ones: of models that were served before, and may be again."""


class Catalogue:
    """Configs by version, and which of them are served."""

    def __init__(self) -> None:
        self._configs: dict[str, BundleConfig] = {}
        self._served: tuple[ModelState, ...] | None = None

    @property
    def knows(self) -> tuple[str, ...]:
        """The versions whose configs need not be sent again."""
        return tuple(self._configs)

    def learn(self, state: State) -> None:
        """Raises MalformedMessage: a config cannot be understood."""
        try:
            sent = {version: BundleConfig.model_validate_json(text) for version, text in state.configs.items()}
        except ValidationError as error:
            raise MalformedMessage(f"a model's config is not one: {error}") from error
        served = {model.version for model in state.models}
        before = {version: one for version, one in self._configs.items() if version not in served}
        kept = dict(list(before.items())[-MAX_CONFIGS:])
        self._configs = kept | {
            version: self._configs.get(version) or sent[version]
            for version in (model.version for model in state.models)
            if version in self._configs or version in sent
        }
        self._served = state.models

    def offers(self, phase: Phase | None) -> tuple[ServedModel, ...] | None:
        """What is served, in the worker's order, or was before the worker was lost (`phase` None); None: not known."""
        if self._served is None:
            return None
        return tuple(
            ServedModel(
                version=model.version,
                config=self._configs[model.version],
                ready=phase is Phase.READY and model.ready,
                device="" if phase is None else model.device,
                precision="" if phase is None else model.precision,
            )
            for model in self._served
            if model.version in self._configs
        )

    def __contains__(self, version: str) -> bool:
        """Whether the worker serves a version, or did not long ago."""
        return version in self._configs


def merge_models(views: Sequence[WorkerView]) -> tuple[ModelStatus, ...] | None:
    """Every model that some worker serves, each once; None: no worker has said yet what it serves.

    The order is that of the first worker that is there; models that it does not have come after its own.
    """
    heard = [view for view in views if view.offers is not None]
    if not heard:
        return None
    of_name: dict[str, list[ServedModel]] = {}
    for view in sorted(heard, key=lambda view: view.phase is None):
        for offer in view.offers or ():
            of_name.setdefault(offer.config.name, []).append(offer)
    return tuple(map(_merge_offers, of_name.values()))


def _merge_offers(offers: Sequence[ServedModel]) -> ModelStatus:
    # While a model is being replaced there are two versions: the one that most workers are ready for is the model.
    ready = Counter(offer.version for offer in offers if offer.ready)
    version = max(offers, key=lambda offer: ready[offer.version]).version
    same = [offer for offer in offers if offer.version == version]
    able = [offer for offer in same if offer.ready] or same
    return ModelStatus(
        config=same[0].config,
        version=version,
        ready=able[0].ready,
        devices=tuple(offer.device for offer in able if offer.device),
        precision=", ".join(dict.fromkeys(offer.precision for offer in able if offer.precision)),
    )


def merge_readiness(views: Sequence[WorkerView]) -> Readiness:
    """Ready while each model is ready on some worker."""
    at_work = [view for view in views if view.phase is Phase.READY]
    if not at_work:
        best = min(views, key=lambda view: view.phase is None)
        return Readiness(False, best.reason, best.retry_after_s)
    retry_after_s = min(view.retry_after_s for view in at_work)
    models = merge_models(views)
    if not models:
        return Readiness(False, "no model is served; the last one was unloaded", retry_after_s)
    unproven = ", ".join(model.config.name for model in models if not model.ready)
    if unproven:
        return Readiness(False, f"not ready: {unproven}", retry_after_s)
    if len(at_work) < len(views):
        return Readiness(True, f"ready, with {len(at_work)} of {len(views)} workers", retry_after_s)
    return Readiness(True, "ready", retry_after_s)


def merge_stores(stores: Iterable[Sequence[StoredModel]]) -> tuple[StoredModel, ...]:
    """Every model of some worker's store, by name, as the worker has it that comes closest to answering."""
    best: dict[str, StoredModel] = {}
    for store in stores:
        for model in store:
            known = best.get(model.name)
            if known is None or (model.ready, model.served) > (known.ready, known.served):
                best[model.name] = model
    return tuple(best[name] for name in sorted(best))
