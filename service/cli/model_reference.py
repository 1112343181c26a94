"""A model as `convmlp compare` names it: of the store, in a precision, or of a running service."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convmlp_client.results import Task as ClientTask
from model.model_name import base_name, canonical_name, version_of
from model.types import Task
from service.cli.backends import Backend, LocalBackend, RemoteBackend
from service.cli.model_identity import local_identity, served_identity
from service.cli.options import query_string
from service.errors import BadParameter
from service.evaluation.predictions import ModelIdentity
from service.frontend.api.rest.query import read_query
from service.frontend.core.parameters import TOP_K
from service.settings import Settings

PRECISIONS = ("exact", "fp32", "fp16", "bf16", "int8")
SERVED = re.compile(r"(?P<url>(?:https?|grpcs?)://.+)/models/(?P<model>[^/?#]+)/?")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model of the service at `url`, or of the store in a precision. `text` is what the user wrote."""

    text: str
    name: str
    precision: str = "exact"
    url: str | None = None

    @classmethod
    def of(cls, text: str) -> ModelReference:
        """Read `NAME`, `NAME:PRECISION` or `http://HOST:PORT/models/NAME`. Raises BadParameter."""
        if "://" in text:
            found = SERVED.fullmatch(text)
            if found is None:
                raise BadParameter(f"{text!r} names no model of a service; expected http://HOST:PORT/models/NAME")
            return cls(text, canonical_name(found["model"]), url=found["url"])
        name, colon, precision = text.partition(":")
        if colon and precision not in PRECISIONS:
            raise BadParameter(f"{text!r}: the precision is one of {', '.join(PRECISIONS)}, as in {name}:fp32")
        return cls(text, canonical_name(name), precision or "exact")

    async def identity(self, api_key: str | None, settings: Settings) -> ModelIdentity:
        """What the model is.

        Raises:
            BundleInvalid: the store does not have it, or it is damaged.
            ConvMLPError: the service does not serve it, or does not answer.
        """
        if self.url is None:
            return local_identity(self.name, self._settings(settings))
        return await served_identity(self.name, self.url, api_key)

    def backend(self, model: ModelIdentity, api_key: str | None, settings: Settings) -> Backend:
        """What predicts with it. Raises as the backends."""
        if self.url is None:
            query = read_query(model.task, query_string({"model": self.name, **self.parameters(model)}))
            return LocalBackend(query, model.task, self._settings(settings))
        # Without a version, a share of the requests may go to other versions.
        versioned = f"{base_name(self.name)}@{version_of(self.name)}"
        parameters = {"model": versioned, **self.parameters(model)}
        return RemoteBackend(self.url, api_key, ClientTask(model.task), parameters, None)

    def parameters(self, model: ModelIdentity) -> dict[str, str | int | float]:
        """Those of its predictions, without the model."""
        if model.task is not Task.CLASSIFY:
            return {}
        # A service takes no more: of more classes the least probable ones are left out.
        return {"top_k": min(len(model.labels), TOP_K.high)}

    def _settings(self, settings: Settings) -> Settings:
        return settings.with_changes(precision=self.precision)
