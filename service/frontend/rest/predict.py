"""POST /classify, /detect, /segment: from the request to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from model.bundle import BundleConfig
from model.decode import decode
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.types import Result, SegmentResult, Task
from service.errors import BadParameter, BadRequest
from service.frontend.engine import Engine
from service.frontend.exchange import slowest
from service.frontend.gate import Gate
from service.frontend.outcome import counted, reply_or_error
from service.frontend.render import PictureFormat, encode_label_map, encode_picture, render
from service.frontend.rest.accept import Medium, negotiate
from service.frontend.rest.body import Upload, read_uploads
from service.frontend.rest.edge import exchange_of, header_of, instance_uri, refusal
from service.frontend.rest.errors import problem_of
from service.frontend.rest.guard import caller_of
from service.frontend.rest.plain import Plain
from service.frontend.rest.query import Query, View, read_query, read_timeout_ms
from service.frontend.rest.schemas import encode_answer, encode_error, encode_result
from service.frontend.rest.waiting import in_time, unless_gone
from service.metrics import FrontEndMetrics
from service.settings import Settings
from service.types import PredictRequest, Reply

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
    def __init__(self, engine: Engine, gate: Gate, settings: Settings, metrics: FrontEndMetrics) -> None:
        self._engine = engine
        self._gate = gate
        self._settings = settings
        self._metrics = metrics
        self._limits = settings.decode_limits

    def endpoint(self, task: Task, path: str) -> ASGIApp:
        """The ASGI application behind the route `path`."""

        async def predict(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            exchange_of(request).route = path
            try:
                response = await self.answer(task, request)
            except ConvMLPError as error:
                response = refusal(request, error)
            await response(scope, receive, send)

        return predict

    async def answer(self, task: Task, request: Request) -> Response:
        """The whole way of one request.

        Raises:
            ConvMLPError: the request's own error; one image's among several is told in its place.
            ClientDisconnect: the caller left; the work was withdrawn.
        """
        with counted(self._metrics, "rest", task.value, exchange_of(request), ClientDisconnect) as count_for:
            query = read_query(task, request.scope["query_string"])
            deadline_s = self._engine.deadline(read_timeout_ms(header_of(request.scope, b"x-request-timeout-ms")))
            medium = Medium.PNG if query.view else negotiate(header_of(request.scope, b"accept"))
            # Before the body is read: a wrong model's name should not cost an upload.
            ask = Ask(self._engine.resolve(task, query.model), query, medium, deadline_s)
            count_for(ask.config.name)
            with self._engine.body_budget() as take:
                uploads = await in_time(read_uploads(request, self._settings, take), deadline_s)
                self._gate.charge(caller_of(request), len(uploads) - 1)
                if medium is not Medium.JSON and len(uploads) > 1:
                    raise BadParameter(
                        f"a picture answers one image and the request has {len(uploads)}; send them one by one, "
                        f"or accept {Medium.JSON}"
                    )
                outcomes = await unless_gone(request, self._predict_all(request, ask, uploads))
            own_error = _own_error(outcomes)
            for outcome in outcomes:
                if isinstance(outcome, ConvMLPError) and outcome is not own_error:
                    self._metrics.told(outcome)
            if own_error is not None:
                raise own_error
            return _response(request, ask, outcomes)

    async def _predict_all(self, request: Request, ask: Ask, uploads: Sequence[Upload]) -> list[Outcome]:
        request_id = exchange_of(request).request_id
        if len(uploads) == 1:
            return [await self._predict(request_id, ask, uploads[0])]
        ids = [f"{request_id}-{at}" for at in range(len(uploads))]
        return await asyncio.gather(
            *(self._predict(image_id, ask, upload) for image_id, upload in zip(ids, uploads, strict=True))
        )

    async def _predict(self, image_id: str, ask: Ask, upload: Upload) -> Outcome:
        if isinstance(upload, BadRequest):
            return upload
        config, query = ask.config, ask.query
        request = PredictRequest(image_id, config.task, config.name, upload, query.params, ask.deadline_s)
        draws = ask.medium is not Medium.JSON
        return await reply_or_error(
            self._engine, request, lambda result: self._encode(ask, upload, result), draws=draws
        )

    def _encode(self, ask: Ask, image: bytes, result: Result) -> bytes:
        if ask.query.view is View.LABEL_MAP and isinstance(result, SegmentResult):
            return encode_label_map(result.label_map)
        if ask.medium is Medium.JSON:
            return encode_result(result, ask.query.mask_format)
        # Decoded pictures are not kept while a request waits; few ask for an overlay.
        return encode_picture(render(decode(image, self._limits), result), PICTURE_FORMATS[ask.medium])


def _own_error(outcomes: Sequence[Outcome]) -> ConvMLPError | None:
    """The error of a single image, or the service's own where it could answer none of several."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, ConvMLPError)]
    if len(errors) < len(outcomes):
        return None
    failures = [error for error in errors if not isinstance(error, FAULTS_OF_AN_IMAGE)]
    return (failures or errors)[0] if failures or len(errors) == 1 else None


def _response(request: Request, ask: Ask, outcomes: Sequence[Outcome]) -> Response:
    replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    exchange = exchange_of(request)
    exchange.timings = replies[0].timings if len(replies) == 1 else slowest(reply.timings for reply in replies)
    if ask.medium is not Medium.JSON:
        return Plain(replies[0].payload, ask.medium, VARY)
    results = [
        outcome.payload
        if isinstance(outcome, Reply)
        else encode_error(problem_of(outcome, f"{instance_uri(request)}-{at}"))
        for at, outcome in enumerate(outcomes)
    ]
    return Plain(encode_answer(ask.config, results), ask.medium, VARY)
