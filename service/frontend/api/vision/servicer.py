"""The gRPC service convmlp.v1.Vision: predictions, unary and as streams, and ListModels."""

from __future__ import annotations

from functools import partial

import grpc
from google.rpc.status_pb2 import Status

from convmlp.v1 import vision_pb2 as pb
from model.bundle import Accuracy, Quantisation
from model.model_name import version_of
from model.spec import (
    CenterCropSpec,
    ClassifyPostSpec,
    DetectPostSpec,
    FixedSizeSpec,
    KeepRatioSpec,
    Postprocessing,
    Preprocessing,
    SegmentPostSpec,
)
from service.errors import BadParameter
from service.frontend.api.vision.convert import (
    METHODS,
    TASKS,
    PredictMethod,
    Request,
    Response,
    encode_response,
    named_of,
    read_analyze_params,
    read_params,
    require_applicable_fields,
)
from service.frontend.core.analysis import Analysis, models_of
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine
from service.frontend.core.parameters import ANALYZE
from service.frontend.core.request_log import SANE_ID, RequestLog, RequestRecord, domain_error
from service.frontend.grpc.call import RpcService, parse
from service.frontend.grpc.status import status_of
from service.observability.logs import request_id
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Reply, Timings

SERVICE: str = pb.DESCRIPTOR.services_by_name["Vision"].full_name
MAX_ID = 128
"""Characters of a message's id."""


def add_vision(
    server: grpc.aio.Server, engine: Engine, auth: Auth, settings: Settings, request_log: RequestLog
) -> None:
    """Add the service to a server."""
    vision = Vision(engine, auth)
    service = RpcService(SERVICE, auth, request_log, settings.max_stream_in_flight)
    for method in METHODS:
        predict, task = partial(vision.predict, method), method.label
        service.add_unary(method.name, predict, task=task)
        service.add_stream(f"{method.name}Stream", predict, method.error_reply, task=task)
    service.add_unary("Analyze", vision.analyze, task=ANALYZE)
    service.add_stream("AnalyzeStream", vision.analyze, _analysis_error, task=ANALYZE)
    service.add_unary("ListModels", vision.list_models)
    service.add_to(server)


class Vision:
    """The service's methods, from bytes to bytes."""

    def __init__(self, engine: Engine, auth: Auth) -> None:
        self._engine = engine
        self._auth = auth

    async def predict(self, method: PredictMethod, record: RequestRecord, data: bytes, timeout_ms: int | None) -> bytes:
        """One image's answer."""
        deadline_s = self._engine.deadline(timeout_ms)
        try:
            message = parse(method.request, data)
            nbytes = len(data)
            del data  # the message holds a copy
            if message.id:
                _use_id(record, message.id)  # first, so that every later error has it
            if not self._auth.is_open:
                self._auth.admit(Caller(record.caller))
            self._engine.bodies.take(record, nbytes)
            params = read_params(message)
            model = self._engine.resolve(method.task, params.model, method.label)
            record.model = model.config.name
            image = message.image
            if message.image_url:
                image = await self._fetched(message, record, deadline_s)
            request = PredictRequest(
                record.request_id,
                model,
                image,
                params.params,
                deadline_s,
                record.caller,
                params.classes,
                params.tiling,
            )
            label_map = isinstance(message, pb.SegmentRequest) and message.label_map
            normalize = isinstance(message, pb.EmbedRequest) and message.normalize
            encode = partial(encode_response, params.mask_format, label_map, normalize)
            del message  # it holds a copy of the image
            reply = await self._engine.predict(request, encode)
        finally:
            self._engine.bodies.release(record)
        record.answered_by((reply,))
        response = reply.payload
        response.id = record.given_id or record.request_id
        response.model, response.precision = record.model, record.precision
        _set_timings(response.timings, reply.timings)
        response.timings.total_ms = record.finish() * 1000
        return response.SerializeToString()

    async def analyze(self, record: RequestRecord, data: bytes, timeout_ms: int | None) -> bytes:
        """Several models' answers for one image."""
        deadline_s = self._engine.deadline(timeout_ms)
        try:
            message = parse(pb.AnalyzeRequest, data)
            nbytes = len(data)
            del data
            if message.id:
                _use_id(record, message.id)
            if not self._auth.is_open:
                self._auth.admit(Caller(record.caller))
            self._engine.bodies.take(record, nbytes)
            tasks, names = named_of(message)
            models = list(models_of(self._engine, tasks, names).values())
            require_applicable_fields(message, {model.config.task for model in models})
            if not self._auth.is_open:  # each model's answer counts as an image
                self._auth.charge(Caller(record.caller), len(models) - 1)
            if len(models) == 1:
                record.model = models[0].config.name
            of_task, image, label_map = read_analyze_params(message), message.image, message.label_map
            if message.image_url:
                image = await self._fetched(message, record, deadline_s)
            del message
            params = [of_task[model.config.task] for model in models]
            requests = [
                PredictRequest(
                    record.request_id, model, image, one.params, deadline_s, record.caller, one.classes, one.tiling
                )
                for model, one in zip(models, params, strict=True)
            ]
            analysis: Analysis[Response] = Analysis(self._engine, requests)
            outcomes, _ = await analysis.run(
                [partial(encode_response, one.mask_format, label_map, False) for one in params]
            )
        finally:
            self._engine.bodies.release(record)
        replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
        timings = record.answered_by(replies)
        response = pb.AnalyzeResponse(id=record.given_id or record.request_id, image=replies[0].payload.image)
        for model, outcome in zip(models, outcomes, strict=True):
            name, task = model.config.name, model.config.task
            answer = response.answers.add(task=TASKS[task], model=name)
            if isinstance(outcome, Reply):
                result = getattr(answer, task.value)
                result.CopyFrom(outcome.payload)
                result.model, result.precision = name, outcome.precision
                _set_timings(result.timings, outcome.timings)
            else:
                error = domain_error(outcome, record.request_id, name)
                record.log.metrics.count_error(error)
                answer.error.CopyFrom(status_of(error, record.request_id))
        _set_timings(response.timings, timings)
        response.timings.total_ms = record.finish() * 1000
        return response.SerializeToString()

    async def _fetched(self, message: Request | pb.AnalyzeRequest, record: RequestRecord, deadline_s: float) -> bytes:
        """The picture that a message names. Raises BadParameter, and as `ImageFetcher.fetch`."""
        if message.image:
            raise BadParameter("'image' and 'image_url' exclude each other; give one of them", "image_url")
        return await self._engine.fetcher.fetch(message.image_url, record, deadline_s)

    async def list_models(self, _record: RequestRecord, _data: bytes, _timeout_ms: int | None) -> bytes:
        """All served models, in the worker's order.

        Raises:
            Unavailable: no worker has reported its models yet.
        """
        models = [_model(self._engine, model) for model in self._engine.models()]
        return pb.ListModelsResponse(models=models).SerializeToString()


def _analysis_error(record: RequestRecord, status: Status) -> bytes:
    """The reply to a message of a stream of analyses that failed."""
    return pb.AnalyzeResponse(id=record.given_id or record.request_id, error=status).SerializeToString()


def _set_timings(timings: pb.Timings, stages: Timings) -> None:
    timings.decode_ms, timings.queue_ms = stages.decode * 1000, stages.queue * 1000
    timings.infer_ms, timings.post_ms = stages.infer * 1000, stages.post * 1000


def accuracy_of(accuracy: Accuracy | None) -> pb.Accuracy | None:
    return None if accuracy is None else pb.Accuracy(**accuracy.model_dump())


def _quantisation(made: Quantisation | None) -> pb.Quantisation | None:
    return None if made is None else pb.Quantisation(**made.model_dump())


def _use_id(record: RequestRecord, given_id: str) -> None:
    """Take the id of a request's message; logs use it if it is printable ASCII.

    Raises:
        BadParameter: it is longer than `MAX_ID`.
    """
    record.given_id = given_id[:MAX_ID]
    if len(given_id) > MAX_ID:
        raise BadParameter(f"parameter 'id' has {len(given_id)} characters; expected at most {MAX_ID}", "id")
    if SANE_ID.fullmatch(given_id):
        record.request_id = given_id
        request_id.set(given_id)


def _model(engine: Engine, model: ModelStatus) -> pb.Model:
    config = model.config
    post = config.postprocessing
    return pb.Model(
        name=config.name,
        task=TASKS[config.task],
        ready=model.ready,
        labels=config.labels,
        weights_sha256=config.weights_sha256,
        is_default=engine.is_default(model),
        version=version_of(config.name),
        share=engine.share(model),
        device=model.device,
        precision=model.precision,
        family=config.architecture.family,
        backbone=config.architecture.backbone.size,
        input=_input(config.preprocessing),
        score_threshold=_score_threshold(post),
        source=pb.Source(**config.source.model_dump()),
        accuracy=accuracy_of(config.accuracy),
        quantisation=_quantisation(config.quantisation),
        embedding_dimension=config.embedding_dimension,
        activation=post.activation if isinstance(post, ClassifyPostSpec) else "",
        form=model.deployment.form,
        form_difference=model.deployment.largest_difference,
        threshold=config.pixel_threshold,
        palette=[pb.Colour(red=red, green=green, blue=blue) for red, green, blue in config.palette or ()],
    )


def _score_threshold(post: Postprocessing) -> float | None:
    """None where every score counts."""
    match post:
        case DetectPostSpec():
            return post.score_threshold
        case ClassifyPostSpec():
            return post.score_threshold or None
        case SegmentPostSpec():
            return None


def _input(spec: Preprocessing) -> pb.Input:
    normalisation = spec.normalisation
    match spec:
        case CenterCropSpec():
            crop = pb.CenterCrop(
                resize_shorter=spec.resize_shorter,
                crop=spec.crop,
                interpolation=spec.interpolation,
                squash=spec.squash,
            )
            return pb.Input(center_crop=crop, mean=normalisation.mean, std=normalisation.std)
        case KeepRatioSpec():
            ratio = pb.KeepRatio(long_side=spec.long_side, short_side=spec.short_side, pad_multiple=spec.pad_multiple)
            return pb.Input(keep_ratio=ratio, mean=normalisation.mean, std=normalisation.std)
        case FixedSizeSpec():
            fixed = pb.FixedSize(width=spec.width, height=spec.height, pad_multiple=spec.pad_multiple)
            return pb.Input(fixed_size=fixed, mean=normalisation.mean, std=normalisation.std)
