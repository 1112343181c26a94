"""The models in memory: which are served and in which order, and which are on their way out.

Which models are served, kept where a restarted worker finds it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from model.bundle import Bundle, BundleConfig
from model.reference import reference_input
from model.types import ModelInput
from service.errors import ModelNotFound, Unavailable

_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A bundle that has a slot in the runner. One that is loaded again has another slot.

    `unready_reason` says why it is not fit to serve; None where it has proven itself on `reference`, its input of the
    reference picture. `precision` is what it computes in, once it is on the device; `best_batch` how many images of
    the reference picture's size are best run at once, 0 until it is measured. `gone`: its slot is being emptied.
    """

    bundle: Bundle
    slot: str
    version: str
    reference: ModelInput
    unready_reason: str | None = "not proven yet"
    precision: str = ""
    best_batch: int = 0
    gone: bool = False

    @property
    def config(self) -> BundleConfig:
        return self.bundle.config

    @property
    def name(self) -> str:
        return self.bundle.config.name


def new_model(bundle: Bundle) -> LoadedModel:
    """A model with a slot of its own, not loaded yet."""
    config = bundle.config
    version = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    return LoadedModel(bundle, f"{config.name}#{next(_numbers)}", version, reference_input(config.preprocessing))


class ModelRegistry:
    """Models by name, in the order of their being served: the first of a task is its default."""

    def __init__(self, models: Iterable[LoadedModel]) -> None:
        self._served = {model.name: model for model in models}
        self._replaced: list[LoadedModel] = []

    @property
    def served(self) -> tuple[LoadedModel, ...]:
        return tuple(self._served.values())

    def get(self, name: str) -> LoadedModel | None:
        return self._served.get(name)

    def find(self, name: str, version: str) -> LoadedModel:
        """The model that an input was made for.

        Raises:
            ModelNotFound: it is not served.
            Unavailable: it was replaced by another version.
        """
        served = self._served.get(name)
        if served is None:
            raise ModelNotFound(f"there is no model {name!r} here")
        for model in (served, *self._replaced):
            if (model.name, model.version) == (name, version):
                return model
        raise Unavailable(f"model {name!r} was replaced while this request was on its way; send it again")

    def put(self, model: LoadedModel) -> LoadedModel | None:
        """Serve a model, in the place of the one of its name or as the last.

        Returns:
            The one that was replaced. It is still found by its version, until it is dropped.
        """
        replaced = self._served.get(model.name)
        self._served[model.name] = model
        if replaced is not None:
            self._replaced.append(replaced)
        return replaced

    def drop(self, replaced: LoadedModel) -> None:
        """Find a replaced model no more."""
        self._replaced.remove(replaced)

    def take(self, name: str) -> LoadedModel:
        """Serve a model no more.

        Raises:
            ModelNotFound: it is not served.
        """
        if name not in self._served:
            raise ModelNotFound(f"there is no model {name!r} here")
        return self._served.pop(name)


log = structlog.get_logger(__name__)


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`configured` is what the settings said; once they say something else, the rest is out of date."""

    configured: tuple[str, ...]
    served: tuple[str, ...]


class StateFile:
    """Names of models, in the order of their being served; without a `path` nothing is ever kept."""

    def __init__(self, path: Path | None, configured: tuple[str, ...]) -> None:
        self._path = path
        self._configured = configured

    def read(self) -> tuple[str, ...]:
        """What was served last, or what is configured: where nothing was kept, or nothing that can be used."""
        if self._path is None:
            return self._configured
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return self._configured
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what was served last cannot be read; serving what is configured", error=str(error))
            return self._configured
        if kept.configured != self._configured:
            log.warning("other models are configured than when some were loaded; serving what is configured")
            return self._configured
        return kept.served

    def write(self, served: Sequence[str]) -> None:
        """Keep names, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}-", delete=False) as file:
            try:
                file.write(msgspec.json.encode(_Kept(self._configured, tuple(served))))
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self._path)
            except BaseException:
                Path(file.name).unlink()
                raise
