"""The models in memory: those that are served, in order, and those that were replaced and still finish their jobs; and
the file from which a restarted worker reads what it served."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from model.bundle import Bundle, BundleConfig
from model.files import open_regular, replace_file
from model.reference import reference_input
from model.types import AS_TRAINED, Deployment, ModelInput
from service.errors import ModelNotFound, Unavailable

log = structlog.get_logger(__name__)

_slot_numbers = itertools.count(1)


MAX_MEASUREMENTS = 5
"""Of a precision in one process, after the first."""


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A bundle with its slot in the runner. A model that is loaded again gets another slot.

    `unready_reason`: why it is not fit to serve; None once it gave its committed answer on `reference`, the network
    input of the reference picture. `precision`: what it computes in, once it is on the device, and `deployment`: the
    form of its network there. `best_batch`: the best number of such inputs in one batch; 0 until it is known.
    `tuned`: it need not be measured again. `measurements_left` bounds those of its precision. `retired`: its slot is
    being emptied.
    """

    bundle: Bundle
    slot: str
    version: str
    reference: ModelInput
    unready_reason: str | None = "not checked yet"
    precision: str = ""
    deployment: Deployment = AS_TRAINED
    best_batch: int = 0
    tuned: bool = False
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

    `by_version` has the served models and those that they replaced, until these are dropped: an input is answered by
    the model that it was made for.
    """

    def __init__(self, models: Iterable[LoadedModel]) -> None:
        self._served = {model.name: model for model in models}
        self._replaced: list[LoadedModel] = []
        self.by_version: dict[str, LoadedModel] = {}
        self._index()

    @property
    def served(self) -> tuple[LoadedModel, ...]:
        return tuple(self._served.values())

    def get(self, name: str) -> LoadedModel | None:
        return self._served.get(name)

    def missing(self, name: str) -> ModelNotFound | Unavailable:
        """The error of a request whose version is not in `by_version`."""
        if name not in self._served:
            return ModelNotFound(f"there is no model {name!r} here")
        return Unavailable(f"model {name!r} was replaced during this request; send it again")

    def put(self, model: LoadedModel) -> LoadedModel | None:
        """Serve a model, in the place of the one of its name or as the last.

        Returns:
            The model that it replaced, which is found by its version until it is dropped.
        """
        replaced = self._served.get(model.name)
        self._served[model.name] = model
        if replaced is not None:
            self._replaced.append(replaced)
        self._index()
        return replaced

    def drop(self, replaced: LoadedModel) -> None:
        """Remove a replaced model from `by_version`."""
        self._replaced.remove(replaced)
        self._index()

    def remove(self, name: str) -> LoadedModel:
        """Stop serving a model.

        Raises:
            ModelNotFound: it is not served.
        """
        if name not in self._served:
            raise ModelNotFound(f"there is no model {name!r} here")
        model = self._served.pop(name)
        self._index()
        return model

    def _index(self) -> None:
        # A model that was loaded again may have the same version: the served one counts.
        replaced = [model for model in self._replaced if model.name in self._served]
        self.by_version = {model.version: model for model in (*replaced, *self._served.values())}


class StateFile:
    """Keeps the names of the served models, in order. Without a `path` nothing is kept."""

    def __init__(self, path: Path | None, configured: tuple[str, ...]) -> None:
        self._path = path
        self._configured = configured

    def read(self) -> tuple[str, ...]:
        """The models that were served last; the configured ones where no usable file was kept."""
        if self._path is None:
            return self._configured
        try:
            with open_regular(self._path) as file:
                content = msgspec.json.decode(file.read(), type=_FileContent)
        except FileNotFoundError:
            return self._configured
        except (OSError, msgspec.DecodeError) as error:
            log.warning("cannot read the models served last; serving the configured ones", error=str(error))
            return self._configured
        if content.configured != self._configured:
            log.warning("the configured models changed since the last start; serving the configured ones")
            return self._configured
        return content.served

    def write(self, served: Sequence[str]) -> None:
        """Keep names: the file is replaced as a whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is not None:
            replace_file(self._path, msgspec.json.encode(_FileContent(self._configured, tuple(served))))


class _FileContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content. `configured`: the models of the settings; once these change, `served` is out of date."""

    configured: tuple[str, ...]
    served: tuple[str, ...]
