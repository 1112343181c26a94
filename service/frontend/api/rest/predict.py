"""A response whose bytes and headers are known: Starlette's own looks at each header and at the body's type again.

POST /classify, /detect, /segment: from the request to its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model.bundle import BundleConfig
from model.decode import decode
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.types import Result, SegmentResult, Task
from service.errors import BadParameter, BadRequest
from service.frontend.api.rest.query import Medium, Query, negotiate, read_query
from service.frontend.api.rest.schemas import encode_answer, encode_error, encode_result
from service.frontend.core.auth import Auth
from service.frontend.core.engine import Engine
from service.frontend.core.overlay import PictureFormat, encode_label_map, encode_picture, render
from service.frontend.core.parameters import View
from service.frontend.core.request_log import slowest, value_or_error
from service.frontend.http.body import Upload, read_uploads
from service.frontend.http.disconnect import body_received, cancel_on_disconnect, within_deadline
from service.frontend.http.middleware import caller_of, header_of, instance_uri, read_timeout_ms, record_of
from service.frontend.http.problems import problem_of
from service.observability.metrics import FrontEndMetrics
from service.settings import Settings
from service.types import PredictRequest, Reply


class BytesResponse(Response):
    """200 with a body of one media type, which needs no charset; `headers` are more of them, names in lower case."""

    def __init__(self, body: bytes, media_type: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode("latin-1")),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


Outcome = Reply[bytes] | ConvMLPError
VARY = ((b"vary", b"Accept"),)

FAULTS_OF_AN_IMAGE = (ImageUndecodable, UnsupportedFormat, ImageTooLarge, BadRequest)
"""Errors that another try cannot mend; of all others one says that the service failed."""

PICTURE_FORMATS = {
    Medium.PNG: PictureFormat.PNG,
    Medium.JPEG: PictureFormat.JPEG,
    Medium.WEBP: PictureFormat.WEBP,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants to know of each of its images, and in which form."""

    config: BundleConfig
    query: Query
    medium: Medium
    deadline_s: float


class Predictions:
    def __init__(self, engine: Engine, gate: Auth, settings: Settings, metrics: FrontEndMetrics) -> None:
        self._engine = engine
        self._gate = gate
        self._settings = settings
        self._metrics = metrics
        self._limits = settings.decode_limits

    def endpoint(self, task: Task, path: str) -> ASGIApp:
        """The ASGI application behind the route `path`."""

        async def predict(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            record_of(request).route = path
            response = await self.answer(task, request)
            await response(scope, receive, send)

        return predict

    async def answer(self, task: Task, request: Request) -> Response:
        """The whole way of one request.

        Raises:
            ConvMLPError: the request's own error; one image's among several is told in its place.
            ClientDisconnect: the caller left; the work was withdrawn.
        """
        scope, record = request.scope, record_of(request)
        record.predicts, record.task = True, task.value
        query = read_query(task, scope["query_string"])
        deadline_s = self._engine.deadline(read_timeout_ms(header_of(scope, b"x-request-timeout-ms")))
        medium = Medium.PNG if query.view else negotiate(header_of(scope, b"accept"))
        # Before the body is read: a wrong model's name should not cost an upload.
        ask = Ask(self._engine.resolve(task, query.model).config, query, medium, deadline_s)
        record.model = ask.config.name
        with self._engine.body_budget() as take:
            reading = read_uploads(request, self._settings, take)
            uploads = await (reading if body_received(request) else within_deadline(reading, deadline_s))
            if len(uploads) == 1:
                with cancel_on_disconnect(request):
                    reply = await self._predict(record.request_id, ask, uploads[0])
                record.timings = reply.timings
                return _response(ask, reply.payload)
            self._gate.charge(caller_of(request), len(uploads) - 1)
            if medium is not Medium.JSON:
                raise BadParameter(
                    f"a picture answers one image and the request has {len(uploads)}; send them one by one, "
                    f"or accept {Medium.JSON}"
                )
            with cancel_on_disconnect(request):
                outcomes = await self._predict_all(record.request_id, ask, uploads)
        own_error = _own_error(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, ConvMLPError) and outcome is not own_error:
                self._metrics.told(outcome)
        if own_error is not None:
            raise own_error
        record.timings = slowest(outcome.timings for outcome in outcomes if isinstance(outcome, Reply))
        return _response(ask, *_places(request, outcomes))

    async def _predict_all(self, request_id: str, ask: Ask, uploads: Sequence[Upload]) -> list[Outcome]:
        """Each image's answer or error: none costs its neighbours theirs."""
        ids = [f"{request_id}-{at}" for at in range(len(uploads))]
        return await asyncio.gather(
            *(
                value_or_error(self._predict(image_id, ask, upload), request_id=image_id, model=ask.config.name)
                for image_id, upload in zip(ids, uploads, strict=True)
            )
        )

    async def _predict(self, image_id: str, ask: Ask, upload: Upload) -> Reply[bytes]:
        if isinstance(upload, BadRequest):
            raise upload
        config, query = ask.config, ask.query
        request = PredictRequest(image_id, config.task, config.name, upload, query.params, ask.deadline_s)
        draws = ask.medium is not Medium.JSON
        return await self._engine.predict(request, lambda result: self._encode(ask, upload, result), draws=draws)

    def _encode(self, ask: Ask, image: bytes, result: Result) -> bytes:
        if ask.query.view is View.LABEL_MAP and isinstance(result, SegmentResult):
            return encode_label_map(result.label_map)
        if ask.medium is Medium.JSON:
            return encode_result(result, ask.query.mask_format)
        # Decoded pictures are not kept while a request waits; few ask for an overlay.
        return encode_picture(render(decode(image, self._limits), result), PICTURE_FORMATS[ask.medium])


def _own_error(outcomes: Sequence[Outcome]) -> ConvMLPError | None:
    """The service's own error where it could answer none of several images."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, ConvMLPError)]
    if len(errors) < len(outcomes):
        return None
    return next((error for error in errors if not isinstance(error, FAULTS_OF_AN_IMAGE)), None)


def _places(request: Request, outcomes: Sequence[Outcome]) -> list[bytes]:
    """What stands in each image's place."""
    return [
        outcome.payload
        if isinstance(outcome, Reply)
        else encode_error(problem_of(outcome, f"{instance_uri(request)}-{at}"))
        for at, outcome in enumerate(outcomes)
    ]


def _response(ask: Ask, *results: bytes) -> Response:
    """A picture, or all results in one answer."""
    if ask.medium is not Medium.JSON:
        return BytesResponse(results[0], ask.medium, VARY)
    return BytesResponse(encode_answer(ask.config, results), ask.medium, VARY)
