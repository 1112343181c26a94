"""What the POSTs of images have in common, from the request to its answer; and /classify, /detect, /segment."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache, partial
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from convmlp_client.drawing import label_colour
from model.bundle import BundleConfig
from model.decode import decode
from model.errors import ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.postprocess.results import postprocess
from model.types import RawOutput, SegmentResult, Size, Task
from service.errors import BadParameter, BadRequest, FetchFailed, UrlRefused
from service.frontend.api.rest.query import MAX_CACHED, Medium, Query, read_query
from service.frontend.api.rest.schemas import Answer, encode_error, encode_output
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine
from service.frontend.core.image_fetcher import image_bytes
from service.frontend.core.overlay import (
    PictureFormat,
    encode_class_colours,
    encode_label_map,
    encode_picture,
    render,
)
from service.frontend.core.parameters import View
from service.frontend.core.request_log import RequestRecord, domain_error
from service.frontend.core.sniffing import TEXT_STARTS
from service.frontend.http.body import EMPTY_BODY, Upload, read_uploads, uploads_of_text
from service.frontend.http.middleware import REQUEST, HttpRequest, within_deadline
from service.frontend.http.problems import problem_of
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Reply

VARY = ((b"vary", b"Accept"),)

IMAGE_FAULTS = (ImageUndecodable, UnsupportedFormat, ImageTooLarge, BadRequest, UrlRefused, FetchFailed)
"""Errors of an image. Any other is a failure of the service, and trying again may help."""

PICTURE_FORMATS = {
    Medium.PNG: PictureFormat.PNG,
    Medium.JPEG: PictureFormat.JPEG,
    Medium.WEBP: PictureFormat.WEBP,
}

IMAGE_TYPES = (b"image/", b"application/octet-stream")
"""How the Content-Type of a body begins that is one image."""

MAX_CACHED_QUERIES = 1024
"""Of an endpoint."""


class HasMedium(Protocol):
    """The parameters of a request: at least the media type of its answer."""

    @property
    def medium(self) -> Medium: ...


Q = TypeVar("Q", bound=HasMedium)
M = TypeVar("M")


class ImageEndpoint(ABC, Generic[Q, M]):
    """ASGI application of `POST /<name>`, behind `RequestMiddleware`: images, parameters Q, a model or models M.

    `read_query`: from a query string and the header Accept; raises BadParameter.
    """

    def __init__(
        self, name: str, read_query: Callable[[bytes, bytes], Q], engine: Engine, auth: Auth, settings: Settings
    ) -> None:
        self.path = f"/{name}"
        self._name = name
        self._read_query = read_query
        # Clients repeat their parameters. Errors are not cached.
        self._cached_query = lru_cache(maxsize=MAX_CACHED_QUERIES)(read_query)
        self._engine = engine
        self._auth = auth
        self._settings = settings
        self._limits = settings.decode_limits

    @abstractmethod
    def _resolve(self, query: Q, record: RequestRecord) -> M:
        """What the parameters name as the models; the record gets the name. Raises as `Engine.resolve`."""

    @abstractmethod
    def _predict(
        self, image_id: str, model: M, query: Q, image: bytes, deadline_s: float, caller: str
    ) -> Coroutine[Any, Any, Reply[bytes]]:
        """The answer for one image, encoded. Raises ConvMLPError."""

    @abstractmethod
    def _encode(self, model: M, results: list[bytes]) -> bytes:
        """The whole answer as JSON, around the results of the images."""

    def _json_advice(self, query: Q) -> str:  # noqa: ARG002  (subclasses look at it)
        """What a caller must change to get JSON in place of a picture."""
        return f"accept {Medium.JSON}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's)
        """Answer one request.

        Raises:
            ConvMLPError: the request's own error; one image's among several stands in its place.
            ClientDisconnect: the client left, and the work was cancelled.
        """
        request: HttpRequest = scope[REQUEST]
        record, headers, engine = request.record, request.headers, self._engine
        record.predicts, record.task, record.route = True, self._name, self.path
        query_string, accept = scope["query_string"], headers.get(b"accept", b"")
        read = self._cached_query if len(query_string) + len(accept) <= MAX_CACHED else self._read_query
        query = read(query_string, accept)
        deadline_s = engine.deadline(request.timeout_ms)
        # Before the body is read, so that a wrong model name does not cost an upload.
        model = self._resolve(query, record)
        try:
            uploads: list[Upload]
            if headers.get(b"content-type", b"").startswith(IMAGE_TYPES):
                body = await request.read_by(deadline_s, self._settings.max_request_bytes, engine.bodies)
                if not body:
                    raise BadRequest(EMPTY_BODY)
                uploads = [body]
                if body[:1] in TEXT_STARTS:
                    uploads = await within_deadline(uploads_of_text(body, self._settings.max_images), deadline_s)
            else:
                uploads = await within_deadline(read_uploads(request, self._settings, engine.bodies), deadline_s)
            if len(uploads) == 1:
                image = uploads[0]
                with request.connection.disconnect:
                    if not isinstance(image, bytes):
                        image = await image_bytes(image, engine.fetcher, record, deadline_s)
                    reply = await self._predict(record.request_id, model, query, image, deadline_s, record.caller)
                record.answered_by((reply,))
                results = [reply.payload]
            else:
                self._auth.charge(Caller(record.caller), len(uploads) - 1)
                if query.medium is not Medium.JSON:
                    raise BadParameter(
                        f"a picture answers one image and the request has {len(uploads)}; send them one by one, "
                        f"or {self._json_advice(query)}"
                    )
                with request.connection.disconnect:
                    results = await self._predict_all(request, model, query, uploads, deadline_s)
        finally:
            engine.bodies.release(record)
        answer = self._encode(model, results) if query.medium is Medium.JSON else results[0]
        await request.respond(answer, query.medium, VARY)

    async def _predict_upload(
        self, image_id: str, model: M, query: Q, upload: Upload, deadline_s: float, record: RequestRecord
    ) -> Reply[bytes]:
        image = await image_bytes(upload, self._engine.fetcher, record, deadline_s)
        return await self._predict(image_id, model, query, image, deadline_s, record.caller)

    async def _predict_all(
        self,
        request: HttpRequest,
        model: M,
        query: Q,
        uploads: Sequence[Upload],
        deadline_s: float,
    ) -> list[bytes]:
        """The place of each image in `results`: its answer or its error, which costs its neighbours nothing.

        Raises:
            ConvMLPError: the service could answer none of the images.
        """
        record = request.record
        ids = [f"{record.request_id}-{position}" for position in range(len(uploads))]
        outcomes: list[Reply[bytes] | BaseException] = await asyncio.gather(
            *[
                self._predict_upload(image_id, model, query, upload, deadline_s, record)
                for image_id, upload in zip(ids, uploads, strict=True)
            ],
            return_exceptions=True,
        )
        replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
        errors = [
            (position, domain_error(outcome, ids[position], record.model))
            for position, outcome in enumerate(outcomes)
            if isinstance(outcome, BaseException)
        ]
        failure = None if replies else next((error for _, error in errors if not isinstance(error, IMAGE_FAULTS)), None)
        for _, error in errors:
            if error is not failure:  # the request's own error is counted where it ends
                record.log.metrics.count_error(error)
        if failure is not None:
            raise failure
        record.answered_by(replies)
        places = [outcome.payload if isinstance(outcome, Reply) else b"" for outcome in outcomes]
        for position, error in errors:
            places[position] = encode_error(problem_of(error, f"{request.instance}-{position}"))
        return places


class ModelEndpoint(ImageEndpoint[Q, ModelStatus]):
    """An endpoint whose answer is one model's."""

    def _encode(self, model: ModelStatus, results: list[bytes]) -> bytes:
        return msgspec.json.encode(Answer(model.config.name, self._name, list(map(msgspec.Raw, results))))


class Predict(ModelEndpoint[Query]):
    """`POST /<task>`."""

    def __init__(self, task: Task, engine: Engine, auth: Auth, settings: Settings) -> None:
        super().__init__(task.value, partial(read_query, task), engine, auth, settings)
        self._task = task

    def _resolve(self, query: Query, record: RequestRecord) -> ModelStatus:
        model = self._engine.resolve(self._task, query.model)
        record.model = model.config.name
        return model

    def _predict(
        self, image_id: str, model: ModelStatus, query: Query, image: bytes, deadline_s: float, caller: str
    ) -> Coroutine[Any, Any, Reply[bytes]]:
        request = PredictRequest(image_id, model, image, query.params, deadline_s, caller, query.classes, query.tiling)
        if query.medium is Medium.JSON:
            return self._engine.predict(request, partial(encode_output, query.mask_format))
        return self._engine.predict(request, partial(self._draw, query, image), draws=True)

    def _json_advice(self, query: Query) -> str:
        advice = super()._json_advice(query)
        # A view is a PNG, whatever Accept is.
        return advice if query.view is None else f"leave `view` out and {advice}"

    def _draw(self, query: Query, image: bytes, raw: RawOutput, config: BundleConfig, size: Size) -> bytes:
        """A picture: the class of each pixel, or its confidence, or the image with the answer drawn on it."""
        result = postprocess(raw, config, size)
        if isinstance(result, SegmentResult):
            if query.view is View.LABEL_MAP:
                return encode_label_map(result.label_map)
            if query.view is View.COLORS:
                colours = config.palette or map(label_colour, config.labels)
                return encode_class_colours(result.label_map, dict(enumerate(colours)))
            if query.view is View.CONFIDENCE and result.confidence_map is not None:
                return encode_label_map(result.confidence_map)
        # Decoded pictures are not kept while a request waits, because few ask for this.
        return encode_picture(render(decode(image, self._limits), result), PICTURE_FORMATS[query.medium])
