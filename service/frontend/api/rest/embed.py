"""POST /embed: a classifier's features as the vector of each image."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from model.types import QueryParams, Task
from service.frontend.api.rest.predict import ModelEndpoint
from service.frontend.api.rest.query import Medium, negotiate, read_values
from service.frontend.api.rest.schemas import encode_embedding
from service.frontend.core.auth import Auth
from service.frontend.core.endpoint_parameters import EMBED_PARAMETERS
from service.frontend.core.engine import Engine
from service.frontend.core.parameters import EMBED, VectorEncoding, parse_params
from service.frontend.core.request_log import RequestRecord
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Reply


@dataclass(frozen=True, slots=True)
class EmbedQuery:
    """The parameters of an embedding. `params` are the worker's."""

    model: str | None
    params: QueryParams
    normalize: bool
    encoding: VectorEncoding
    medium: Medium


def read_embed_query(query_string: bytes, accept: bytes = b"") -> EmbedQuery:
    """Parse and check a query string, and the header Accept. Raises BadParameter, as `read_query`."""
    values = read_values(EMBED, EMBED_PARAMETERS, query_string)
    normalize, encoding = values.pop("normalize", False), values.pop("encoding", VectorEncoding.JSON)
    parsed = parse_params(embed=True, **values)
    medium = negotiate(accept.decode("latin-1"), (Medium.JSON,))
    return EmbedQuery(parsed.model, parsed.params, normalize, encoding, medium)


class Embed(ModelEndpoint[EmbedQuery]):
    """`POST /embed`."""

    def __init__(self, engine: Engine, auth: Auth, settings: Settings) -> None:
        super().__init__(EMBED, read_embed_query, engine, auth, settings)

    def _resolve(self, query: EmbedQuery, record: RequestRecord) -> ModelStatus:
        model = self._engine.resolve(Task.CLASSIFY, query.model, EMBED)
        record.model = model.config.name
        return model

    def _predict(
        self, image_id: str, model: ModelStatus, query: EmbedQuery, image: bytes, deadline_s: float, caller: str
    ) -> Coroutine[Any, Any, Reply[bytes]]:
        request = PredictRequest(image_id, model, image, query.params, deadline_s, caller)
        return self._engine.predict(request, partial(encode_embedding, query.normalize, query.encoding))
