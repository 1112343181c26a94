"""A model as `convmlp compare` names it: of the store, in a precision, or of a running service."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convmlp_client.errors import ClientError
from convmlp_client.results import Task as ClientTask
from model.bundle import find_bundle, read_bundle
from model.model_name import base_name, canonical_name, version_of
from model.types import Task
from service.cli.backends import Backend, LocalBackend, RemoteBackend, domain_error, open_client
from service.cli.options import query_string
from service.errors import BadParameter, ModelNotFound
from service.frontend.api.rest.query import read_query
from service.frontend.core.parameters import TOP_K
from service.settings import Settings

PRECISIONS = ("exact", "fp32", "fp16", "bf16", "int8")
SERVED = re.compile(r"(?P<url>(?:https?|grpcs?)://.+)/models/(?P<model>[^/?#]+)/?")


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model's task and labels."""

    task: Task
    labels: tuple[str, ...]


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

    async def described(self, api_key: str | None, settings: Settings) -> ComparedModel:
        """What the model is.

        Raises:
            BundleInvalid: the store does not have it, or it is damaged.
            ConvMLPError: the service does not serve it, or does not answer.
        """
        if self.url is None:
            config = read_bundle(find_bundle(self.name, settings.models_dir)).config
            return ComparedModel(config.task, config.labels)
        async with open_client(self.url, api_key) as client:
            try:
                models = {model.name: model for model in await client.models()}
            except ClientError as error:
                raise domain_error(error) from error
        if self.name not in models:
            served = ", ".join(models) or "no models"
            raise ModelNotFound(f"{self.url} does not serve {self.name!r}; it serves {served}")
        return ComparedModel(Task(models[self.name].task), models[self.name].labels)

    def backend(self, model: ComparedModel, api_key: str | None, settings: Settings) -> Backend:
        """What predicts with it. Raises as the backends."""
        parameters: dict[str, str | float] = {"model": self.name}
        if model.task is Task.CLASSIFY:
            # A service takes no more: of more classes the least probable ones are left out.
            parameters["top_k"] = min(len(model.labels), TOP_K.high)
        if self.url is None:
            query = read_query(model.task, query_string(parameters))
            return LocalBackend(query, model.task, settings.with_changes(precision=self.precision))
        # Without a version, a share of the requests may go to other versions.
        parameters["model"] = f"{base_name(self.name)}@{version_of(self.name)}"
        return RemoteBackend(self.url, api_key, ClientTask(model.task), parameters, None)
