"""The models in memory: those that are served, in order, how requests are split among their versions, and those that
were replaced or unloaded and still finish their jobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from model.bundle import Bundle, BundleConfig
from model.errors import BundleInvalid
from model.model_name import base_name, version_of, versioned_name
from model.reference import reference_input
from model.types import AS_TRAINED, Deployment, ModelInput
from service.errors import BadParameter, ModelNotFound, Unavailable
from service.traffic_split import ALL, TrafficSplit, check_split

_slot_numbers = itertools.count(1)


MAX_MEASUREMENTS = 5
"""Of a precision in one process, after the first."""


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A bundle with its slot in the runner. A model that is loaded again gets another slot.

    `unready_reason`: why it is not fit to serve; None once it gave its committed answer on `reference`, the network
    input of the reference picture. `precision`: what it computes in, once it is on the device, and `deployment`: the
    form of its network there. `best_batch`: the best number of such inputs in one batch; 0 until it is known.
    `tunings_left` bounds how often the best batch is measured again, and `measurements_left` does so for the precision.
    `retired`: its slot is being emptied.
    """

    bundle: Bundle
    slot: str
    version: str
    reference: ModelInput
    unready_reason: str | None = "not checked yet"
    precision: str = ""
    deployment: Deployment = AS_TRAINED
    best_batch: int = 0
    tunings_left: int = MAX_MEASUREMENTS
    measurements_left: int = MAX_MEASUREMENTS
    retired: bool = False

    @property
    def config(self) -> BundleConfig:
        return self.bundle.config

    @property
    def name(self) -> str:
        return self.bundle.config.name


def new_model(bundle: Bundle) -> LoadedModel:
    """A model with a slot of its own, not loaded yet."""
    config = bundle.config
    slot = f"{config.name}#{next(_slot_numbers)}"
    return LoadedModel(bundle, slot, config.version, reference_input(config.preprocessing))


class ModelRegistry:
    """The served models by name, in the order in which they were served: the first of a task is its default.

    `by_version` has the served models, and those that were replaced or removed until these are dropped: an input is
    answered by the model that it was made for. `splits` are by model name; their versions are served.
    """

    def __init__(self, models: Iterable[LoadedModel]) -> None:
        """Raises BundleInvalid: two versions of a model are for different tasks."""
        self._served: dict[str, LoadedModel] = {}
        self._leaving: list[LoadedModel] = []
        self.by_version: dict[str, LoadedModel] = {}
        self.splits: dict[str, TrafficSplit] = {}
        for model in models:
            self.check_task(model)
            self._served[model.name] = model
        self._index()

    @property
    def served(self) -> tuple[LoadedModel, ...]:
        return tuple(self._served.values())

    def get(self, name: str) -> LoadedModel | None:
        return self._served.get(name)

    def missing(self, name: str) -> Unavailable:
        """The error of a request whose version is not in `by_version`: it was when the request arrived.

        Sent again it gets another version of the model, or ModelNotFound.
        """
        change = "replaced" if name in self._served else "unloaded"
        return Unavailable(f"model {name!r} was {change} during this request; send it again")

    def check_task(self, model: LoadedModel) -> None:
        """Raises BundleInvalid: a served version of the model is for another task, so requests cannot be split."""
        for other in self._served.values():
            if base_name(other.name) == base_name(model.name) and other.config.task != model.config.task:
                raise BundleInvalid(
                    f"{model.name!r} is for {model.config.task.value}, and its version {other.name!r} for "
                    f"{other.config.task.value}; versions of a model have one task, so give it another name"
                )

    def put(self, model: LoadedModel) -> LoadedModel | None:
        """Serve a model, in the place of the one of its name or as the last.

        Returns:
            The model that it replaced, which is found by its version until it is dropped.
        """
        replaced = self._served.get(model.name)
        self._served[model.name] = model
        if replaced is not None:
            self._leaving.append(replaced)
        self._index()
        return replaced

    def drop(self, leaving: LoadedModel) -> None:
        """Remove a model that was replaced or removed from `by_version`."""
        self._leaving.remove(leaving)
        self._index()

    def remove(self, name: str) -> LoadedModel:
        """Stop serving a model, which is found by its version until it is dropped. The others get its share of a split.

        Raises:
            ModelNotFound: it is not served.
        """
        if name not in self._served:
            raise ModelNotFound(f"there is no model {name!r} here")
        model = self._served.pop(name)
        self._leaving.append(model)
        self._index()
        self.set_splits(self.splits)
        return model

    def set_splits(self, splits: Mapping[str, TrafficSplit]) -> None:
        """Replace all splits. Versions that are not served lose their shares to the others of their model."""
        self.splits = {}
        for name, split in splits.items():
            served = {version: percent for version, percent in split.items() if self._serves(name, version)}
            if total := sum(served.values()):
                self.splits[name] = {version: ALL * percent / total for version, percent in served.items()}

    def set_split(self, name: str, split: TrafficSplit) -> None:
        """Replace the split of one name; an empty one removes it.

        Raises:
            BadParameter: the split is not valid.
            ModelNotFound: no version of the model is served, or one of the split is not.
        """
        versions = [version_of(model) for model in self._served if base_name(model) == name]
        if not versions:
            raise ModelNotFound(f"there is no model {name!r} here")
        try:
            check_split(split)
        except ValueError as error:
            raise BadParameter(f"the split of {name!r}: {error}", "split") from None
        for version in split:
            if version not in versions:
                raise ModelNotFound(
                    f"model {name!r} has no version {version!r} here; load {versioned_name(name, version)!r} first "
                    f"(served: {', '.join(versions)})"
                )
        self.splits.pop(name, None)
        if split:
            self.splits[name] = dict(split)

    def _serves(self, name: str, version: str) -> bool:
        return versioned_name(name, version) in self._served

    def _index(self) -> None:
        # A model that was loaded again may have the same version: the served one counts.
        self.by_version = {model.version: model for model in (*self._leaving, *self._served.values())}
