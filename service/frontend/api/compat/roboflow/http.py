"""POST /compat/roboflow/MODEL/VERSION: Roboflow's hosted inference API v0, for the unmodified `inference_sdk`.

The body is the base64 of an image, its bytes, or a form with the part `file`. The task is the model's: a detector with
masks answers as for instance segmentation.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from model.model_name import SEPARATOR, is_version
from service.errors import ModelNotFound
from service.frontend.api.compat.roboflow.answers import Encoder
from service.frontend.api.compat.roboflow.parameters import AnswerFormat, read_options
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine
from service.frontend.core.image_fetcher import ImageUrl, image_bytes
from service.frontend.core.parameters import shown
from service.frontend.http.body import Upload
from service.frontend.http.fields import read_fields
from service.frontend.http.middleware import request_of, within_deadline
from service.settings import Settings
from service.types import ModelStatus, PredictRequest

PATH = "/compat/roboflow/{project}/{version}"
IMAGE_FIELDS = (b"file", b"image")
JSON, JPEG = "application/json", "image/jpeg"


def roboflow(engine: Engine, auth: Auth, settings: Settings) -> APIRouter:
    """The route."""
    router = APIRouter()
    router.add_route(PATH, Roboflow(engine, auth, settings).predict, ("GET", "POST"))
    return router


class Roboflow:
    """The route's endpoint."""

    def __init__(self, engine: Engine, auth: Auth, settings: Settings) -> None:
        self._engine = engine
        self._auth = auth
        self._max_bytes = settings.max_request_bytes
        self._limits = settings.decode_limits

    async def predict(self, framework_request: Request) -> Response:
        """Answer one request. GET needs the parameter `image`.

        Raises:
            ConvMLPError: the request's error.
            ClientDisconnect: the client left, and the work was cancelled.
        """
        request = request_of(framework_request)
        record, engine = request.record, self._engine
        record.predicts, record.route = True, PATH
        if not request.predicts:  # a GET: it was not admitted with the predictions
            self._auth.admit(Caller(record.caller))
        options = read_options(request.scope["query_string"])
        model = self._model(**framework_request.path_params)
        config = model.config
        record.task, record.model = config.task.value, config.name
        params = options.params(config)
        deadline_s = engine.deadline(request.timeout_ms)
        try:
            upload: Upload
            if options.image_url is not None:
                upload = ImageUrl(options.image_url)
            else:
                reading = read_fields(request, self._max_bytes, engine.bodies, IMAGE_FIELDS)
                upload = (await within_deadline(reading, deadline_s)).image
            with request.connection.disconnect:
                image = await image_bytes(upload, engine.fetcher, record, deadline_s)
                encode = Encoder(options, record.request_id, record.started_s, image, self._limits)
                prediction = PredictRequest(
                    record.request_id, model, image, params, deadline_s, record.caller, options.classes
                )
                reply = await engine.predict(prediction, encode, draws=encode.draws)
        finally:
            engine.bodies.release(record)
        record.answered_by((reply,))
        return Response(reply.payload, media_type=JPEG if options.answer_format is AnswerFormat.IMAGE else JSON)

    def _model(self, project: str, version: str) -> ModelStatus:
        """Raises ModelNotFound, Unavailable."""
        if not is_version(version):
            raise ModelNotFound(
                f"{shown(version)} is no version, a whole number; the path is {PATH} with a model's name and its "
                "version; `inference_sdk` uses it after `select_api_v0()`"
            )
        return self._engine.resolve_any(f"{project}{SEPARATOR}{version}")
