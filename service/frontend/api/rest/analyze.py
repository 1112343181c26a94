"""POST /analyze: the answers of several models for each image, which is sent and decoded once."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from model.bundle import BundleConfig
from model.decode import decode
from model.postprocess.masks import MaskFormat
from model.postprocess.results import postprocess
from model.types import RawOutput, Result, Size, Task
from service.errors import BadParameter
from service.frontend.api.rest.predict import PICTURE_FORMATS, ImageEndpoint
from service.frontend.api.rest.query import Medium, negotiate, read_values
from service.frontend.api.rest.schemas import encode_analysis, encode_analysis_answer, encode_error, encode_output
from service.frontend.core.analysis import Analysis, Models, Outcome, models_of
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.endpoint_parameters import ANALYZE_PARAMETERS
from service.frontend.core.engine import Engine
from service.frontend.core.overlay import encode_picture, render
from service.frontend.core.parameters import (
    ANALYZE,
    PARAMETERS,
    PredictParams,
    parse_params,
    require_applicable,
)
from service.frontend.core.request_log import RequestRecord, domain_error, precisions, slowest
from service.frontend.http.problems import instance_of, problem_of
from service.settings import Settings
from service.types import PredictRequest, Reply


@dataclass(frozen=True, slots=True)
class AnalyzeQuery:
    """The parameters of an analysis, and each task's own. `given` are the names of the latter in the query string whose
    values are not the defaults, each with the tasks that have it."""

    tasks: tuple[Task, ...]
    models: tuple[str, ...]
    params: Mapping[Task, PredictParams]
    given: Mapping[str, frozenset[Task]]
    medium: Medium


def read_analyze_query(query_string: bytes, accept: bytes = b"") -> AnalyzeQuery:
    """Parse and check a query string, and the header Accept. Raises BadParameter, as `read_query`."""
    values = read_values(ANALYZE, ANALYZE_PARAMETERS, query_string)
    tasks, models = values.pop("tasks", ()), values.pop("models", ())
    if tasks and models:
        raise BadParameter("parameters 'tasks' and 'models' exclude each other; give one of them", "models")
    params = {
        task: parse_params(**{name: value for name, value in values.items() if task in PARAMETERS[name].tasks})
        for task in Task
    }
    given = {
        name: PARAMETERS[name].tasks
        for name, value in values.items()
        if value != PARAMETERS[name].schema.get("default")
    }
    return AnalyzeQuery(tasks, models, params, given, negotiate(accept.decode("latin-1")))


class Analyze(ImageEndpoint[AnalyzeQuery, Models]):
    """`POST /analyze`."""

    def __init__(self, engine: Engine, auth: Auth, settings: Settings) -> None:
        super().__init__(ANALYZE, read_analyze_query, engine, auth, settings)

    def _resolve(self, query: AnalyzeQuery, record: RequestRecord) -> Models:
        models = models_of(self._engine, query.tasks, query.models)
        require_applicable(query.given, {model.config.task for model in models.values()})
        if len(models) == 1:
            (model,) = models.values()
            record.model = model.config.name
        return models

    def _predict(
        self, image_id: str, model: Models, query: AnalyzeQuery, image: bytes, deadline_s: float, caller: str
    ) -> Coroutine[Any, Any, Reply[bytes]]:
        # Each model's answer counts as an image.
        self._auth.charge(Caller(caller), len(model) - 1)
        params = [query.params[one.config.task] for one in model.values()]
        requests = [
            PredictRequest(image_id, one, image, of_task.params, deadline_s, caller, of_task.classes, of_task.tiling)
            for one, of_task in zip(model.values(), params, strict=True)
        ]
        analysis: Analysis[Any] = Analysis(self._engine, requests)
        if query.medium is Medium.JSON:
            return self._answers(analysis, image_id, model, [of_task.mask_format for of_task in params])
        return self._drawing(analysis, image_id, model, query.medium, image)

    def _encode(self, model: Models, results: list[bytes]) -> bytes:
        return encode_analysis_answer({name: one.config.name for name, one in model.items()}, results)

    async def _answers(
        self, analysis: Analysis[tuple[Size, bytes]], image_id: str, models: Models, mask_formats: list[MaskFormat]
    ) -> Reply[bytes]:
        """The place of an image in `results`."""
        outcomes, _ = await analysis.run([partial(_encode_sized, mask_format) for mask_format in mask_formats])
        answers: dict[str, bytes] = {}
        for (name, model), outcome in zip(models.items(), outcomes, strict=True):
            if isinstance(outcome, Reply):
                size, answers[name] = outcome.payload
            else:
                error = domain_error(outcome, image_id, model.config.name)
                self._engine.metrics.count_error(error)
                answers[name] = encode_error(problem_of(error, instance_of(self.path, f"{image_id}-{name}")))
        return _joined(outcomes, encode_analysis(size, answers))

    async def _drawing(
        self, analysis: Analysis[Result], image_id: str, models: Models, medium: Medium, image: bytes
    ) -> Reply[bytes]:
        """The image with all answers drawn on it. Raises the first error: a drawing cannot show that one is missing."""

        def draw(outcomes: list[Outcome[Result]]) -> bytes:
            results = [outcome.payload for outcome in outcomes if isinstance(outcome, Reply)]
            return encode_picture(render(decode(image, self._limits), *results), PICTURE_FORMATS[medium])

        outcomes, drawing = await analysis.run([postprocess] * len(models), draw)
        for model, outcome in zip(models.values(), outcomes, strict=True):
            if not isinstance(outcome, Reply):
                raise domain_error(outcome, image_id, model.config.name)
        assert drawing is not None
        reply = _joined(outcomes, drawing.value)
        return replace(reply, timings=replace(reply.timings, post=reply.timings.post + drawing.seconds))


def _encode_sized(mask_format: MaskFormat, raw: RawOutput, config: BundleConfig, size: Size) -> tuple[Size, bytes]:
    """An answer, encoded, and the size of its image."""
    return size, encode_output(mask_format, raw, config, size)


def _joined(outcomes: list[Outcome[Any]], payload: bytes) -> Reply[bytes]:
    """One reply in the place of several: each stage's slowest, the largest batch, all precisions."""
    replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    timings = slowest(reply.timings for reply in replies)
    return Reply(payload, timings, max(reply.batch_images for reply in replies), precisions(replies))
