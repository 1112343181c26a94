"""What several workers say, as one: pure functions of their views. Of a single worker they change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from service.types import ModelStatus, Readiness, StoredModel
from service.wire.messages import Phase
from service.wire.view import Offer, WorkerView


def merge_models(views: Sequence[WorkerView]) -> tuple[ModelStatus, ...] | None:
    """Every model that some worker serves, each once; None: no worker has said yet what it serves.

    The order is that of the first worker that is there; models that it does not have come after its own.
    """
    heard = [view for view in views if view.offers is not None]
    if not heard:
        return None
    of_name: dict[str, list[Offer]] = {}
    for view in sorted(heard, key=lambda view: view.phase is None):
        for offer in view.offers or ():
            of_name.setdefault(offer.config.name, []).append(offer)
    return tuple(map(_merge_offers, of_name.values()))


def _merge_offers(offers: Sequence[Offer]) -> ModelStatus:
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
