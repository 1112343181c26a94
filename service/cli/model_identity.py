"""What a model is in one state: of the store, or of a running service."""

from __future__ import annotations

import hashlib

from convmlp_client.errors import ClientError
from model.bundle import find_bundle, read_bundle
from model.model_name import canonical_name
from model.spec import SegmentPostSpec
from model.types import Task
from service.cli.backends import domain_error, open_client
from service.errors import ModelNotFound
from service.evaluation.predictions import ModelIdentity
from service.settings import Settings


def local_identity(name: str, settings: Settings) -> ModelIdentity:
    """A model of the store in the precision of the settings. Raises BundleInvalid."""
    config = read_bundle(find_bundle(name, settings.models_dir)).config
    post = config.postprocessing
    pipeline = f"{config.preprocessing.model_dump_json()}{post.model_dump_json()}"
    precision = settings.precision_of(config.name)
    return ModelIdentity(
        config.name,
        config.task,
        config.labels,
        config.weights_sha256,
        "exact" if precision == "auto" else precision,
        None if isinstance(post, SegmentPostSpec) else post.score_threshold or None,
        hashlib.sha256(pipeline.encode()).hexdigest(),
        config.palette,
    )


async def served_identity(name: str, url: str, api_key: str | None) -> ModelIdentity:
    """A model of the service at `url`. Raises NoAnswer, ModelNotFound, or the service's error."""
    async with open_client(url, api_key) as client:
        try:
            models = {model.name: model for model in await client.models()}
        except ClientError as error:
            raise domain_error(error) from error
    found = models.get(canonical_name(name))
    if found is None:
        raise ModelNotFound(f"{url} does not serve {name!r}; it serves {', '.join(models) or 'no models'}")
    return ModelIdentity(
        found.name,
        Task(found.task),
        found.labels,
        found.weights_sha256,
        found.precision,
        found.score_threshold,
        palette=found.palette,
    )
