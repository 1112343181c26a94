"""Routes below /compat/labelstudio: a machine learning backend for Label Studio, which pre-annotates pictures.

Label Studio asks /health and /setup before it sends tasks to /predict, all selected ones at once. Those that are not
answered by the deadline get an error each, and Label Studio asks for them the next time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from service.errors import BadParameter, BadRequest, DeadlineExceeded, FetchFailed, Unavailable, UrlRefused
from service.frontend.api.compat.labelstudio.label_config import parse_label_config
from service.frontend.api.compat.labelstudio.pictures import LabelStudioHost, LabelStudioHosts, host_of, read_picture
from service.frontend.api.compat.labelstudio.plan import Plan, Question, plan_of, version_of
from service.frontend.api.compat.labelstudio.regions import Regions, encode_regions
from service.frontend.api.compat.labelstudio.schemas import (
    LabelStudioEvent,
    LabelStudioFailure,
    LabelStudioHealth,
    LabelStudioModelVersion,
    LabelStudioPrediction,
    LabelStudioPredictions,
    LabelStudioProject,
    LabelStudioTask,
    LabelStudioTasks,
    LabelStudioVersions,
)
from service.frontend.core.analysis import Analysis
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine
from service.frontend.core.parameters import ANALYZE, shown
from service.frontend.core.request_log import RequestRecord, domain_error
from service.frontend.http.body import off_loop
from service.frontend.http.middleware import HttpRequest, request_of
from service.frontend.http.problems import instance_of, problem_of
from service.settings import Settings
from service.types import PredictRequest, Reply

PREFIX = "/compat/labelstudio"
MAX_TASKS = 20_000
"""In one request."""
CONCURRENT_TASKS = 8
"""Of one request. Their pictures are in memory together."""
MAX_ANSWER_BYTES = 64 * 2**20
"""Masks of many tasks are large; tasks beyond get an error."""
MAX_PROJECT = 64
"""Characters of a project's name that are compared."""
FEW_ERRORS = 100
"""More of them are encoded in a thread: of all tasks it takes a third of a second."""
START_TRAINING = "START_TRAINING"
TASK_FAULTS = (ImageUndecodable, UnsupportedFormat, ImageTooLarge, BadRequest, UrlRefused, FetchFailed)
"""Errors of a task. Any other is a failure of the service, and trying again may help."""

T = TypeVar("T")


def label_studio(engine: Engine, auth: Auth, settings: Settings) -> APIRouter:
    """All routes."""
    backend = LabelStudioBackend(engine, auth, settings)
    router = APIRouter()

    def add(path: str, answer: Callable[[HttpRequest], Awaitable[msgspec.Struct]], method: str) -> None:
        async def endpoint(framework_request: Request) -> Response:
            request = request_of(framework_request)
            request.record.route = PREFIX + path  # FastAPI sets it for its own routes only
            try:
                return Response(msgspec.json.encode(await answer(request)), media_type="application/json")
            finally:
                engine.bodies.release(request.record)

        router.add_route(PREFIX + path, endpoint, [method])

    for path in ("", "/", "/health"):
        add(path, backend.health, "GET")
    add("/versions", backend.versions, "GET")
    add("/setup", backend.setup, "POST")
    add("/predict", backend.predict, "POST")
    add("/webhook", backend.webhook, "POST")
    return router


class LabelStudioBackend:
    """The routes' endpoints. All raise domain errors, and ClientDisconnect when the client leaves."""

    def __init__(self, engine: Engine, auth: Auth, settings: Settings) -> None:
        self._engine = engine
        self._auth = auth
        self._settings = settings
        self._hosts = LabelStudioHosts()

    async def health(self, _: HttpRequest) -> LabelStudioHealth:
        readiness = self._engine.readiness()
        if not readiness.ready:
            raise Unavailable(readiness.reason, readiness.retry_after_s)
        return LabelStudioHealth("UP", "ConvMLP Serving")

    async def versions(self, _: HttpRequest) -> LabelStudioVersions:
        """The version of each model alone."""
        return LabelStudioVersions([version_of(model) for model in self._engine.resolve_all()])

    async def setup(self, request: HttpRequest) -> LabelStudioModelVersion:
        body = await self._read(request, LabelStudioProject)
        controls = await off_loop(partial(parse_label_config, body.schema), len(body.schema))
        plan = plan_of(self._engine, controls)
        if body.hostname:
            host = host_of(body.hostname, body.access_token or "")
            self._hosts.put(request.record.caller, _key(body.project), host)
        return LabelStudioModelVersion(plan.model_version)

    async def webhook(self, request: HttpRequest) -> LabelStudioHealth:
        """Label Studio reports each change of a project here, once it is connected. Nothing learns from it."""
        body = await self._read(request, LabelStudioEvent)
        if body.action == START_TRAINING:
            raise BadParameter("this service does not train models; `convmlp train` does", "action")
        return LabelStudioHealth("ignored", "ConvMLP Serving")

    async def predict(self, request: HttpRequest) -> LabelStudioPredictions:
        record, engine = request.record, self._engine
        record.predicts = True
        deadline_s = engine.deadline(request.timeout_ms)
        body = await self._read(request, LabelStudioTasks, deadline_s)
        if len(body.tasks) > MAX_TASKS:
            raise ImageTooLarge(f"the request has {len(body.tasks)} tasks; send at most {MAX_TASKS} at a time")
        controls = await off_loop(partial(parse_label_config, body.label_config), len(body.label_config))
        plan = plan_of(engine, controls)
        models = plan.models
        record.task = models[0].config.task.value if len(models) == 1 else ANALYZE
        record.model = models[0].config.name if len(models) == 1 else ""
        url = (body.params.hostname if body.params else None) or ""
        host = self._hosts.get(record.caller, _key(body.project), url)
        batch = _Batch(engine, self._auth, request, plan, host, deadline_s)
        with request.connection.disconnect:
            results = await batch.results(body.tasks)
        return LabelStudioPredictions(results, plan.model_version)

    async def _read(self, request: HttpRequest, kind: type[T], deadline_s: float | None = None) -> T:
        """The JSON body. Raises BadRequest, and as `HttpRequest.read`."""
        deadline_s = self._engine.deadline(request.timeout_ms) if deadline_s is None else deadline_s
        body = await request.read_by(deadline_s, self._settings.max_request_bytes, self._engine.bodies)
        return await off_loop(partial(_parse, kind, body), len(body))


class _Batch:
    """The tasks of one request."""

    def __init__(
        self,
        engine: Engine,
        auth: Auth,
        request: HttpRequest,
        plan: Plan,
        host: LabelStudioHost | None,
        deadline_s: float,
    ) -> None:
        self._engine = engine
        self._auth = auth
        self._request = request
        self._plan = plan
        self._host = host
        self._deadline_s = deadline_s
        self._replies: list[Reply[None]] = []
        self._nbytes = 0
        self._charged = 1
        """Images that the caller's rate has counted: the request as one."""

    async def results(self, tasks: Sequence[LabelStudioTask]) -> list[msgspec.Raw]:
        """The place of each task: its prediction or its error, which costs its neighbours nothing.

        Raises:
            ConvMLPError: the service could answer none of the tasks.
        """
        outcomes: list[bytes | ConvMLPError] = [b""] * len(tasks)
        positions = iter(range(len(tasks)))

        async def work() -> None:
            for position in positions:
                outcomes[position] = await self._outcome(position, tasks[position])

        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENT_TASKS, len(tasks))):
                group.create_task(work())
        record = self._request.record
        record.answered_by(self._replies)
        errors = [outcome for outcome in outcomes if isinstance(outcome, ConvMLPError)]
        failure = next((error for error in errors if not isinstance(error, TASK_FAULTS)), None)
        if failure is not None and len(errors) == len(tasks):
            raise failure
        for error in errors:
            self._engine.metrics.count_error(error)
        places = partial(_places, outcomes, record.path, record.request_id)
        return places() if len(errors) <= FEW_ERRORS else await asyncio.to_thread(places)

    async def _outcome(self, position: int, task: LabelStudioTask) -> bytes | ConvMLPError:
        record = self._request.record
        task_id = f"{record.request_id}-{position}"
        if time.monotonic() >= self._deadline_s:
            return DeadlineExceeded("the request's deadline passed before this task; retrieve its predictions again")
        if self._nbytes > MAX_ANSWER_BYTES:
            return ImageTooLarge(
                f"the predictions before this task have more than {MAX_ANSWER_BYTES:,} bytes; retrieve its predictions "
                "again"
            )
        # The bytes of its pictures are released with it, before the request ends.
        of_task = RequestRecord(record.log, task_id, time.monotonic(), caller=record.caller)
        try:
            prediction = await self._prediction(position, task, of_task)
        except Exception as error:
            return domain_error(error, task_id, record.model)
        finally:
            self._engine.bodies.release(of_task)
        self._nbytes += len(prediction)
        return prediction

    async def _prediction(self, position: int, task: LabelStudioTask, of_task: RequestRecord) -> bytes:
        """Raises the first error: a prediction would not show that results are missing."""
        regions: list[Regions] = []
        for key, questions in self._plan.pictures.items():
            image = await self._picture(position, task, key, of_task)
            replies = await self._ask(image, questions, of_task.request_id)
            self._replies += [Reply(None, reply.timings, precision=reply.precision) for reply in replies]
            regions += [reply.payload for reply in replies]
        encoded = [one for found in regions for one in found.encoded]
        scores = [score for found in regions for score in found.scores]
        score = sum(scores) / len(scores) if scores else 0.0
        return msgspec.json.encode(LabelStudioPrediction(encoded, score, self._plan.model_version))

    async def _picture(self, position: int, task: LabelStudioTask, key: str, of_task: RequestRecord) -> bytes:
        if key not in task.data:
            raise BadRequest(f"tasks[{position}].data has no {shown(key)}, where the label config's Image expects it")
        name, fetcher = f"tasks[{position}].data.{key}", self._engine.fetcher
        return await read_picture(task.data[key], name, task.id, self._host, fetcher, of_task, self._deadline_s)

    async def _ask(self, image: bytes, questions: Sequence[Question], image_id: str) -> list[Reply[Regions]]:
        caller = self._request.record.caller
        self._auth.charge(Caller(caller), len(questions) - self._charged)
        self._charged = 0
        requests = [
            PredictRequest(image_id, question.model, image, question.params, self._deadline_s, caller)
            for question in questions
        ]
        encoders = [partial(encode_regions, question.bindings) for question in questions]
        if len(questions) == 1:
            return [await self._engine.predict(requests[0], encoders[0])]
        outcomes, _ = await Analysis[Regions](self._engine, requests).run(encoders)
        replies: list[Reply[Regions]] = []
        for question, outcome in zip(questions, outcomes, strict=True):
            if not isinstance(outcome, Reply):
                raise domain_error(outcome, image_id, question.model.config.name)
            replies.append(outcome)
        return replies


def _places(outcomes: Sequence[bytes | ConvMLPError], path: str, request_id: str) -> list[msgspec.Raw]:
    """The predictions, and the errors, encoded."""
    return [
        msgspec.Raw(
            msgspec.json.encode(LabelStudioFailure(problem_of(outcome, instance_of(path, f"{request_id}-{position}"))))
            if isinstance(outcome, ConvMLPError)
            else outcome
        )
        for position, outcome in enumerate(outcomes)
    ]


def _parse(kind: type[T], body: bytes) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON body is not as Label Studio sends it: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the JSON body is nested too deeply") from None


def _key(project: object) -> str:
    """A project as a key."""
    return str(project)[:MAX_PROJECT]
