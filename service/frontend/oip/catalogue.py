"""What the protocol asks of models beside inference: the same for both transports, as plain data (see `describe`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from service.errors import BadRequest, ModelNotFound, Unavailable
from service.frontend.engine import Engine
from service.frontend.oip.describe import (
    model_config,
    model_metadata,
    model_statistics,
    repository_entry,
)
from service.frontend.oip.request import check_version
from service.frontend.oip.statistics import Statistics
from service.settings import Settings
from service.types import ModelStatus

NO_SHARED_MEMORY = "this service shares no memory with its callers; send and take tensors in the messages themselves"
NO_SETTINGS = "callers cannot change or read settings of logging and tracing here; the service's operator can"


class Catalogue:
    """Where a model is named its methods raise ModelNotFound for one that is not served, or for a version that there
    is not; all raise Unavailable while it is not known what is served."""

    def __init__(self, engine: Engine, settings: Settings, statistics: Statistics) -> None:
        self._engine = engine
        self._settings = settings
        self._statistics = statistics

    def status(self, name: str, version: str) -> ModelStatus:
        status = self._engine.model(name)
        check_version(name, version)
        return status

    def task_of(self, name: str) -> str:
        """For the metrics: the task of a served model, else nothing."""
        try:
            return self._engine.model(name).config.task.value
        except (ModelNotFound, Unavailable):
            return ""

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        return model_metadata(self.status(name, version).config)

    def config(self, name: str, version: str) -> dict[str, Any]:
        return model_config(self.status(name, version), self._settings)

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Of one model, or of all where none is named."""
        statuses = [self.status(name, version)] if name else self._engine.models()
        names = [status.config.name for status in statuses]
        return {"model_stats": [model_statistics(name, self._statistics.of(name)) for name in names]}

    async def index(self, *, only_ready: bool, deadline_s: float | None) -> list[dict[str, Any]]:
        """Everything in the worker's store. Raises what `Engine.repository` does."""
        models = await self._engine.repository(deadline_s)
        return [repository_entry(model) for model in models if model.ready or not only_ready]

    async def load(self, name: str, parameters: Collection[str], deadline_s: float | None) -> None:
        """Raises BadRequest where `parameters` would change the model, and what `Engine.load` does."""
        if parameters:
            raise BadRequest(
                f"a model is loaded as its bundle in the store describes it; {', '.join(sorted(parameters))[:80]!r} "
                "cannot be given"
            )
        await self._engine.load(name, deadline_s)

    async def unload(self, name: str, deadline_s: float | None) -> None:
        """Raises what `Engine.unload` does."""
        await self._engine.unload(name, deadline_s)
