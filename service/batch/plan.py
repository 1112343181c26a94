"""What a job computes: its models, with the parameters of each. It is sent to the processes that score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from model.bundle import Bundle, find_bundle, read_bundle
from model.errors import BundleInvalid
from model.postprocess.masks import MaskFormat
from model.tiles import Tiling
from model.types import QueryParams, Task
from service.errors import BadParameter, ModelNotFound
from service.frontend.api.rest.analyze import AnalyzeQuery, read_analyze_query
from service.frontend.core.parameters import PARAMETERS, params_for, require_applicable
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model, in the folder of its bundle, and the parameters of its predictions. `answer`: the name of its answers
    beside those of others. `precision`: `auto` until a process has selected one."""

    answer: str
    folder: Path
    name: str
    task: Task
    version: str
    weights_sha256: str
    precision: str
    params: QueryParams
    mask_format: MaskFormat
    tiling: Tiling | None
    labels: tuple[str, ...]

    def bundle(self) -> Bundle:
        """Raises BundleInvalid: it cannot be read, or has changed since the plan was made."""
        bundle = read_bundle(self.folder)
        if bundle.config.version != self.version:
            raise BundleInvalid(f"the model {self.name} in {self.folder} was replaced meanwhile; run the job again")
        return bundle

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the task, by their names in the REST API; classes by index."""
        values: dict[str, Any] = {**msgspec.structs.asdict(self.params), "mask_format": self.mask_format.value}
        if self.tiling is not None:
            values["tiles"] = asdict(self.tiling)
        names = [name for name, parameter in PARAMETERS.items() if self.task in parameter.tasks]
        return {name: values[name] for name in names if values.get(name) is not None}


@dataclass(frozen=True, slots=True)
class Plan:
    """All models of a job, and the settings of the processes that load them."""

    models: tuple[ModelPlan, ...]
    settings: Settings
    batch_images: int | None = None

    def with_precisions(self, precisions: Mapping[str, str]) -> Plan:
        """The plan with these precisions, by the names of the models."""
        return replace(
            self, models=tuple(replace(one, precision=precisions.get(one.name, one.precision)) for one in self.models)
        )

    @property
    def worker_settings(self) -> Settings:
        """The settings of a process that scores."""
        return self.settings.with_changes(
            models=tuple(one.name for one in self.models),
            precision=tuple(f"{one.name}={one.precision}" for one in self.models),
        )


def read_plan(query_string: bytes, tasks: Sequence[Task], settings: Settings, batch_images: int | None = None) -> Plan:
    """The plan of a query string of /analyze, checked as the service checks it.

    Args:
        query_string: as POST /analyze has it; models exclude tasks there.
        tasks: that the named models must be for; without names, each is for a model of `settings.models`.
        settings: with the model store, the device and the precision.
        batch_images: the largest batch; None: the default of the device.

    Raises:
        BadParameter: a parameter is unknown, out of its range, or of no model that is used.
        ModelNotFound: no model is for one of the tasks.
        BundleInvalid: a model is not in the store, or is damaged.
    """
    query = read_analyze_query(query_string)
    if query.models:
        bundles = {name: read_bundle(find_bundle(name, settings.models_dir)) for name in query.models}
        others = {bundle.config.task for bundle in bundles.values()} ^ set(tasks)
        if tasks and others:
            raise BadParameter(
                f"the models and the tasks do not fit: {', '.join(sorted(others))} is only of one of them"
            )
    else:
        bundles = {task.value: _default_bundle(task, settings) for task in tasks}
    require_applicable(query.given, {bundle.config.task for bundle in bundles.values()})
    models = tuple(_model_plan(answer, bundle, query, settings) for answer, bundle in bundles.items())
    return Plan(models, settings, batch_images)


def _default_bundle(task: Task, settings: Settings) -> Bundle:
    for name in settings.models:
        bundle = read_bundle(find_bundle(name, settings.models_dir))
        if bundle.config.task is task:
            return bundle
    raise ModelNotFound(f"none of {', '.join(settings.models)} is for {task.value!r}; name one with --model")


def _model_plan(answer: str, bundle: Bundle, query: AnalyzeQuery, settings: Settings) -> ModelPlan:
    config = bundle.config
    of_task = query.params[config.task]
    return ModelPlan(
        answer,
        bundle.folder,
        config.name,
        config.task,
        config.version,
        config.weights_sha256,
        settings.precision_of(config.name),
        params_for(config, of_task.params, of_task.classes),
        of_task.mask_format,
        of_task.tiling,
        config.labels,
    )
