"""What a front-end knows of a worker's models."""

from __future__ import annotations

from pydantic import ValidationError

from model.bundle import BundleConfig
from service.wire.messages import MalformedMessage, ModelState, Phase, State
from service.wire.view import Offer

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

    def offers(self, phase: Phase | None) -> tuple[Offer, ...] | None:
        """What is served, in the worker's order, or was before the worker was lost (`phase` None); None: not known."""
        if self._served is None:
            return None
        return tuple(
            Offer(
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
