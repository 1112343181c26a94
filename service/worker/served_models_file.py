"""The file from which a restarted worker reads what it served: models that callers loaded, and splits that they set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from model.errors import BundleInvalid
from model.files import open_regular, replace_file
from service.settings import EMBEDDED_MODELS, Settings
from service.traffic_split import TrafficSplit

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The names of the served models, in order, and the splits of requests by model name."""

    models: tuple[str, ...]
    splits: Mapping[str, TrafficSplit] = field(default_factory=dict)

    @classmethod
    def configured(cls, settings: Settings) -> ServedModels:
        return cls(settings.models, settings.splits)


class ServedModelsFile:
    """Keeps what a worker serves. Without a `path` nothing is kept."""

    def __init__(self, path: Path | None, configured: ServedModels) -> None:
        self._path = path
        self._configured = configured

    def read(self) -> ServedModels:
        """What was served last; what is configured where no usable file was kept."""
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
        if ServedModels(content.configured, content.configured_splits) != self._configured:
            log.warning("the configured models or splits changed since the last start; serving the configured ones")
            return self._configured
        return ServedModels(content.served, content.splits)

    def write(self, served: ServedModels) -> None:
        """Keep what is served: the file is replaced as a whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is not None:
            configured = self._configured
            content = _FileContent(configured.models, served.models, configured.splits, served.splits)
            replace_file(self._path, msgspec.json.encode(content))


def require_models(settings: Settings) -> None:
    """Check that the folder of models and the configured models exist, before a process listens.

    What is in their files is checked as they are loaded. A model that callers unloaded may be missing.

    Raises:
        BundleInvalid: one does not exist.
    """
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise BundleInvalid(
            f"models_dir {settings.models_dir} is not a folder; create it, or leave the setting out: the embedded "
            "models need none"
        )
    if settings.models_dir is None and set(settings.models) <= set(EMBEDDED_MODELS):
        return
    from model.bundle import find_bundle  # imports NumPy, which the supervisor does without otherwise

    file = ServedModelsFile(settings.served_models_file, ServedModels.configured(settings))
    for name in file.read().models:
        if name in settings.models:
            find_bundle(name, settings.models_dir)


class _FileContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content. `configured`: the settings' models and splits; once they change, the others are out of date.

    Files of versions of this program without splits are read.
    """

    configured: tuple[str, ...]
    served: tuple[str, ...]
    configured_splits: Mapping[str, Mapping[str, float]] = {}
    splits: Mapping[str, Mapping[str, float]] = {}
