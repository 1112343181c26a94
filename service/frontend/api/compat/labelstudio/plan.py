"""Which models answer the controls of a label config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.families.registry import family_of
from model.types import QueryParams, Task
from service.errors import BadRequest
from service.frontend.api.compat.labelstudio.label_config import ANSWERED, Control, ControlTag
from service.frontend.api.compat.labelstudio.regions import Binding, bind, params_of
from service.frontend.core.engine import Engine
from service.frontend.core.parameters import shown
from service.types import ModelStatus

TASKS = {
    ControlTag.RECTANGLES: (Task.DETECT,),
    ControlTag.BRUSH: (Task.SEGMENT, Task.DETECT),
    ControlTag.POLYGONS: (Task.DETECT, Task.SEGMENT),
    ControlTag.CHOICES: (Task.CLASSIFY,),
}
"""Which tasks answer a control, the preferred first. For masks a detector must have them."""
HASH_DIGITS = 8
"""Of the hash of a model's weights in `model_version`."""


@dataclass(frozen=True, slots=True)
class Question:
    """A model, the controls of one picture that it answers, and what it computes for them."""

    model: ModelStatus
    bindings: tuple[Binding, ...]
    params: QueryParams


@dataclass(frozen=True, slots=True)
class Plan:
    """By the key of a picture in a task's data the questions about it."""

    pictures: dict[str, tuple[Question, ...]]

    @property
    def models(self) -> list[ModelStatus]:
        """All models, each once."""
        by_name = {one.model.config.name: one.model for questions in self.pictures.values() for one in questions}
        return list(by_name.values())

    @property
    def model_version(self) -> str:
        """The versions of all models.

        Label Studio asks again for tasks whose predictions have another one.
        """
        return " + ".join(map(version_of, self.models))


def version_of(model: ModelStatus) -> str:
    """A model's name and the beginning of its weights' hash."""
    return f"{model.config.name} {model.config.weights_sha256[:HASH_DIGITS]}"


def plan_of(engine: Engine, controls: Sequence[Control]) -> Plan:
    """The models of the controls. Those whose labels no model knows are left out: annotators answer them.

    Raises:
        BadRequest: no control is left, or one names a model that cannot answer it.
        ModelNotFound: a control names a model that is not served.
        Unavailable: no worker has reported its models yet.
    """
    if not controls:
        raise BadRequest(
            f"the label config has no control of a picture that is answered; expected one of {ANSWERED}, whose toName "
            'is the name of an Image with value="$KEY"'
        )
    served = engine.resolve_all()
    chosen: dict[str, dict[str, list[Binding]]] = {}
    models: dict[str, ModelStatus] = {}
    for control in controls:
        found = _model_of(engine, served, control)
        if found is not None:
            model, binding = found
            models[model.config.name] = model
            chosen.setdefault(control.picture, {}).setdefault(model.config.name, []).append(binding)
    if not chosen:
        names = ", ".join(f"{control.tag} {shown(control.name)}" for control in controls)
        raise BadRequest(
            f"no served model knows a label of {names}; list a model's labels in a label's predicted_values, or name a "
            "model in the control's model_name (see /models)"
        )
    return Plan(
        {
            picture: tuple(
                Question(models[name], tuple(bindings), params_of(bindings, models[name].config))
                for name, bindings in by_model.items()
            )
            for picture, by_model in chosen.items()
        }
    )


def _model_of(engine: Engine, served: Sequence[ModelStatus], control: Control) -> tuple[ModelStatus, Binding] | None:
    """The named model, or the first that knows one of the control's labels; None if no model does."""
    candidates = list(_candidates([engine.resolve_any(control.model)] if control.model else served, control.tag))
    if control.model and not candidates:
        raise BadRequest(
            f"the label config's control {shown(control.name)} is a {control.tag}, which {control.model!r} cannot "
            f"answer; expected a model for {' or '.join(TASKS[control.tag])}, with masks where it draws them"
        )
    bound = ((model, bind(control, model.config)) for model in candidates)
    return next((found for found in bound if found[1].values), None)


def _candidates(models: Sequence[ModelStatus], tag: ControlTag) -> Iterator[ModelStatus]:
    for task in TASKS[tag]:
        for model in models:
            config = model.config
            draws = tag is ControlTag.RECTANGLES or task is not Task.DETECT or family_of(config.architecture).masks
            if config.task is task and draws:
                yield model
