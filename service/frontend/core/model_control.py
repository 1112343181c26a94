"""The control of the workers' models: what is stored, loading, unloading, and the split of requests among versions."""

from __future__ import annotations

import time

from model.model_name import canonical_name
from service.errors import MODEL_CONTROL_OFF, Forbidden
from service.settings import Settings
from service.traffic_split import TrafficSplit
from service.types import StoredModel
from service.wire.pool import WorkerPool


class ModelControl:
    """Changes are made on all workers or on none; the exceptions stand at the methods.

    A name without a version means the model's version 1; of `set_split` it means the model.
    """

    def __init__(self, workers: WorkerPool, settings: Settings) -> None:
        self._workers = workers
        self._settings = settings

    async def repository(self, deadline_s: float | None = None) -> tuple[StoredModel, ...]:
        """All models of the worker's store, and all that it serves, by name.

        Raises:
            DeadlineExceeded: no answer came by `deadline_s`, on the clock of `time.monotonic`; None means
                `model_control_timeout_ms` from now.
            Overloaded: too many such requests wait already.
            Unavailable: no worker is ready, or it was lost meanwhile.
        """
        return await self._workers.repository(self._control_deadline(deadline_s))

    async def load(self, name: str, deadline_s: float | None = None) -> None:
        """Serve a model of the store. When this returns it is ready, and the last of its task.

        A model that is served already is read again from disk. If its weights or its config changed, or it is not
        ready, it is loaded anew and replaces the old one, which answers until then. A call that is cancelled, fails or
        is late changes nothing; only where one of several workers cannot load a changed model do the others keep the
        change.

        Raises:
            Forbidden: model control is off in the settings.
            ModelNotFound: the store has no model of that name.
            ModelInvalid: its bundle is broken, or it does not give its reference answer.
            Overloaded: the device has no room for it, or too many such requests wait already.
            DeadlineExceeded, Unavailable: as `repository`.
        """
        self._check_model_control()
        await self._workers.load(canonical_name(name), self._control_deadline(deadline_s))

    async def unload(self, name: str, deadline_s: float | None = None) -> None:
        """Stop serving a model. Its requests in progress are answered first, then its memory is freed.

        New requests for it get ModelNotFound; its share of a split goes to the other versions. Without its last model
        the service is not ready, and readiness has the reason. An unload that has begun is completed, even if the
        caller leaves.

        Raises:
            Forbidden: model control is off in the settings.
            ModelNotFound: it is not served.
            Overloaded: too many such requests wait already.
            DeadlineExceeded, Unavailable: as `repository`.
        """
        self._check_model_control()
        await self._workers.unload(canonical_name(name), self._control_deadline(deadline_s))

    async def set_split(self, name: str, split: TrafficSplit, deadline_s: float | None = None) -> None:
        """Split the requests for a model's name among its served versions; an empty split removes the present one.

        When this returns new requests are split so. A call that fails or is late changes nothing.

        Raises:
            Forbidden: model control is off in the settings.
            ModelNotFound: no version of the model is served, or one of the split is not.
            BadParameter: the percentages do not sum to 100, or a key is no version.
            Overloaded: too many such requests wait already.
            DeadlineExceeded, Unavailable: as `repository`.
        """
        self._check_model_control()
        await self._workers.set_split(name, split, self._control_deadline(deadline_s))

    def _check_model_control(self) -> None:
        if not self._settings.model_control:
            raise Forbidden(MODEL_CONTROL_OFF)

    def _control_deadline(self, deadline_s: float | None) -> float:
        latest_s = time.monotonic() + self._settings.model_control_timeout_ms / 1000
        return latest_s if deadline_s is None else min(deadline_s, latest_s)
