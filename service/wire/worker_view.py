"""A front-end's view of each worker, the configs of its models, and the views of several workers merged into one.

The merge functions are pure; merging the view of a single worker changes nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from pydantic import ValidationError

from model.bundle import Accuracy, BundleConfig
from model.model_name import base_name
from model.types import AS_TRAINED, Deployment, RawOutput
from service.traffic_split import TrafficSplit
from service.types import ModelStatus, Readiness, StoredModel
from service.wire.messages import MalformedMessage, ModelState, Phase, State, WaitEstimate
from service.wire.version_routes import Route, make_routes

NO_WORKER = "there is no worker at the moment; one is being started"
NO_MEMBER = "no worker has joined yet; one is being started"
FIRST_RETRY_S = 2.0
"""Retry-After while there is no worker and nothing is known."""
MIN_RETRY_S = 0.5
AT_ONCE_S = 1.0
"""A worker that is ready so soon after this front-end began to look for it was there before."""

MAX_CONFIGS = 64
"""Configs that are kept besides those of served models, for models that are served again."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of one worker. Workers with the same config and weights have the same `version`."""

    version: str
    config: BundleConfig
    ready: bool
    device: str
    precision: str
    deployment: Deployment = AS_TRAINED


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The last state of a worker.

    `phase` is None where there is no worker, or it was lost. `models` are those that it serves, in its order, or served
    before it was lost; None before its first State. `splits` are by model name.
    """

    phase: Phase | None
    reason: str
    retry_after_s: float
    models: tuple[ServedModel, ...] | None
    splits: Mapping[str, TrafficSplit] = field(default_factory=dict)

    def has_ready(self, version: str) -> bool:
        return any(model.version == version and model.ready for model in self.models or ())


class WorkerAnswer(msgspec.Struct, frozen=True):
    """One output. `queue_s`, `infer_s`: the seconds that its job waited and ran. `batch_images` counts the images of
    its batch, itself included. `precision` is what the network computed in."""

    output: RawOutput
    queue_s: float
    infer_s: float
    batch_images: int
    estimate: WaitEstimate | None
    precision: str


class Recovery:
    """When a worker that is lost, or still starts, is ready again, as far as one front-end can see.

    It takes as long as the last time, from the loss on; before the first time as long as the worker's own start takes.
    Where nothing is known, or that time is over, it is expected to take as long again as it has lasted: the
    supervisor waits longer from one restart to the next. `clock` returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s: float | None = clock()
        """When the worker was lost; None while it is ready."""
        self._expected_s = 0.0
        """0: not known."""
        self._outages = 0
        self._measured = False
        """Whether an outage was. The first start of all may have measured what later starts do not measure again: after
        it the worker's own figure is better."""

    def learn(self, start_s: float) -> None:
        """The worker has reported how long its starts take; 0 where it does not know."""
        if start_s and not self._measured:
            self._expected_s = start_s

    def ready(self) -> None:
        if self._since_s is None:
            return
        lasted_s, self._since_s = self._clock() - self._since_s, None
        if lasted_s > AT_ONCE_S:
            self._expected_s, self._measured = lasted_s, self._outages > 0

    def lost(self) -> None:
        """The worker is not ready. Only the first call counts until it is again."""
        if self._since_s is None:
            self._since_s = self._clock()
            self._outages += 1

    def left_s(self) -> float:
        """Expected seconds until the worker is ready; `MIN_RETRY_S` where it is."""
        if self._since_s is None:
            return MIN_RETRY_S
        lasted_s = self._clock() - self._since_s
        if lasted_s < self._expected_s:
            return max(self._expected_s - lasted_s, MIN_RETRY_S)
        return max(FIRST_RETRY_S, lasted_s)


class ModelConfigs:
    """The configs of a worker's models by version, and which versions it serves."""

    def __init__(self) -> None:
        self._configs: dict[str, BundleConfig] = {}
        self._served: tuple[ModelState, ...] | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions whose configs need not be sent again."""
        return tuple(self._configs)

    def learn(self, state: State) -> None:
        """Take over the configs of a State and what it serves.

        Raises:
            MalformedMessage: a config is invalid; nothing changes.
        """
        try:
            sent = {version: BundleConfig.model_validate_json(text) for version, text in state.configs.items()}
            figures = {
                model.version: Accuracy.model_validate_json(model.accuracy) if model.accuracy else None
                for model in state.models
            }
        except ValidationError as error:
            raise MalformedMessage(f"a model's config is invalid: {error}") from error
        served = {model.version for model in state.models}
        before = {version: config for version, config in self._configs.items() if version not in served}
        kept = dict(list(before.items())[-MAX_CONFIGS:])
        self._configs = kept | {
            version: self._configs.get(version) or sent[version]
            for version in (model.version for model in state.models)
            if version in self._configs or version in sent
        }
        for version, accuracy in figures.items():
            config = self._configs.get(version)
            if config is not None and config.accuracy != accuracy:  # it was measured after its config was sent
                self._configs[version] = config.model_copy(update={"accuracy": accuracy})
        self._served = state.models

    def models(self, phase: Phase | None) -> tuple[ServedModel, ...] | None:
        """The served models in the worker's order, or those before it was lost (`phase` None). None: not known yet."""
        if self._served is None:
            return None
        return tuple(
            ServedModel(
                version=model.version,
                config=self._configs[model.version],
                ready=phase is Phase.READY and model.ready,
                device="" if phase is None else model.device,
                precision="" if phase is None else model.precision,
                deployment=Deployment(model.form, model.form_difference),
            )
            for model in self._served
            if model.version in self._configs
        )

    def __contains__(self, version: str) -> bool:
        """Whether the worker serves a version, or did lately."""
        return version in self._configs


def merge_models(views: Sequence[WorkerView]) -> tuple[ModelStatus, ...] | None:
    """All models that a worker serves, each once. None: no worker has sent a State yet.

    The order is that of the first worker that is there; models that it does not serve follow.
    """
    known = [view for view in views if view.models is not None]
    if not known:
        return None
    by_name: dict[str, list[ServedModel]] = {}
    for view in sorted(known, key=lambda view: view.phase is None):
        for model in view.models or ():
            by_name.setdefault(model.config.name, []).append(model)
    return tuple(map(_merge_model, by_name.values()))


def merge_routes(views: Sequence[WorkerView]) -> dict[str, Route]:
    """The routes to the versions of all served models.

    A name's split is that of a worker that serves the name and is there, a ready one first.
    """
    splits: dict[str, TrafficSplit] = {}
    for view in sorted(views, key=lambda view: (view.phase is not Phase.READY, view.phase is None)):
        for model in view.models or ():
            name = base_name(model.config.name)
            splits.setdefault(name, view.splits.get(name, {}))
    return make_routes(merge_models(views) or (), splits)


def merge_readiness(views: Sequence[WorkerView]) -> Readiness:
    """Ready while each model's name has a version that is ready on at least one worker and answers requests for it."""
    up = [view for view in views if view.phase is Phase.READY]
    if not views:
        return Readiness(False, NO_MEMBER, FIRST_RETRY_S)
    if not up:
        best = min(views, key=lambda view: (view.phase is None, view.reason == NO_WORKER))
        return Readiness(False, best.reason, best.retry_after_s)
    retry_after_s = min(view.retry_after_s for view in up)
    models = merge_models(views)
    if not models:
        return Readiness(False, "no model is served; the last one was unloaded", retry_after_s)
    routes = merge_routes(views)
    not_ready = [model.config.name for model in models if not model.ready]
    if any(not routes[base_name(name)].ready for name in not_ready):
        return Readiness(False, f"not ready: {', '.join(not_ready)}", retry_after_s)
    without = f", without {', '.join(not_ready)}" if not_ready else ""
    if len(up) < len(views):
        return Readiness(True, f"ready, with {len(up)} of {len(views)} workers{without}", retry_after_s)
    return Readiness(True, f"ready{without}", retry_after_s)


def merge_stores(stores: Iterable[Sequence[StoredModel]]) -> tuple[StoredModel, ...]:
    """The models of all workers' stores, sorted by name; each in its best state: ready, else served, else stored."""
    best: dict[str, StoredModel] = {}
    for store in stores:
        for model in store:
            known = best.get(model.name)
            if known is None or (model.ready, model.served) > (known.ready, known.served):
                best[model.name] = model
    return tuple(best[name] for name in sorted(best))


def _merge_model(models: Sequence[ServedModel]) -> ModelStatus:
    # While a model is being replaced there are two versions. The one that most workers are ready for counts.
    ready = Counter(model.version for model in models if model.ready)
    version = max(models, key=lambda model: ready[model.version]).version
    same = [model for model in models if model.version == version]
    serving = [model for model in same if model.ready] or same
    return ModelStatus(
        config=same[0].config,
        version=version,
        ready=serving[0].ready,
        devices=tuple(model.device for model in serving if model.device),
        precision=", ".join(dict.fromkeys(model.precision for model in serving if model.precision)),
        deployment=serving[0].deployment,
    )
