"""The table of HTTP errors: domain error → status and title, sent as problem+json (RFC 9457).

Under the paths of other products' APIs the same body is sent as plain JSON, with the members that their clients read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from model.errors import BundleInvalid, ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from service.errors import (
    INTERNAL_DETAIL,
    BadParameter,
    BadRequest,
    DeadlineExceeded,
    FetchFailed,
    FetchTimeout,
    Forbidden,
    Internal,
    ModelInvalid,
    ModelNotFound,
    NotAcceptable,
    Overloaded,
    RateLimited,
    RetryLater,
    Unauthenticated,
    Unavailable,
    UnsupportedEncoding,
    UrlRefused,
)
from service.frontend.http.content_encoding import CODINGS

PROBLEM_MEDIA_TYPE = "application/problem+json"
JSON_MEDIA_TYPE = "application/json"
PROBLEM_PATH = "/problems"


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """`public`: callers get the error's own message; else it stays in the log."""

    status: int
    title: str
    public: bool = True


ERROR_TABLE: dict[type[ConvMLPError], ProblemRow] = {
    ImageUndecodable: ProblemRow(400, "The image cannot be decoded"),
    UnsupportedFormat: ProblemRow(415, "The image format is not supported"),
    ImageTooLarge: ProblemRow(413, "Too many bytes, pixels or images"),
    BadRequest: ProblemRow(400, "The request body is invalid"),
    UnsupportedEncoding: ProblemRow(415, "The body's Content-Encoding is not supported"),
    NotAcceptable: ProblemRow(406, "No accepted media type is offered"),
    BadParameter: ProblemRow(422, "A parameter is invalid"),
    ModelNotFound: ProblemRow(404, "Model not found"),
    ModelInvalid: ProblemRow(422, "The model cannot be served"),
    Unauthenticated: ProblemRow(401, "Credentials are missing or wrong"),
    Forbidden: ProblemRow(403, "Forbidden by the service's configuration"),
    UrlRefused: ProblemRow(422, "The picture's URL is not fetched"),
    FetchFailed: ProblemRow(502, "The picture cannot be fetched"),
    FetchTimeout: ProblemRow(504, "The picture was not fetched in time"),
    Overloaded: ProblemRow(503, "The service is overloaded"),
    RateLimited: ProblemRow(429, "Too many requests from this caller"),
    Unavailable: ProblemRow(503, "The service is not available"),
    DeadlineExceeded: ProblemRow(504, "The deadline passed"),
    Internal: ProblemRow(500, "Internal error"),
    BundleInvalid: ProblemRow(500, "Internal error", public=False),
}


class Problem(msgspec.Struct, frozen=True):
    """An error. `type` names its kind and is stable; `error` repeats `detail` for clients that read it."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How problems are sent below some paths: as plain JSON, with `more` members, and with other statuses."""

    paths: tuple[str, ...]
    more: Callable[[Problem], Mapping[str, Any]] = lambda _: {}
    statuses: Mapping[int, int] = field(default_factory=dict)


DEEPSTACK_PATHS = ("/compat/deepstack/", "/v1/vision/", "/v1/status/")
ROBOFLOW_PATH = "/compat/roboflow/"

ERROR_FORMS = (
    # KServe's SDK shows the text of no other media type.
    ErrorForm(("/v2/", "/v2#")),
    # DeepStack's SDK reports "Invalid image" for 400, and "Unknown error" for the other statuses of an image.
    ErrorForm(
        DEEPSTACK_PATHS,
        lambda problem: {"success": False, "code": problem.status},
        {413: 400, 415: 400},
    ),
    # Roboflow's SDK shows `message`.
    ErrorForm((ROBOFLOW_PATH,), lambda problem: {"message": problem.detail}),
)


def row_of(error: ConvMLPError) -> ProblemRow:
    """The table's row for an error, or for the nearest of its bases; else that of Internal."""
    return next((ERROR_TABLE[kind] for kind in type(error).__mro__ if kind in ERROR_TABLE), ERROR_TABLE[Internal])


def problem_of(error: ConvMLPError, instance: str) -> Problem:
    row = row_of(error)
    if row.public:
        return problem(error.code, row.status, row.title, error.http_detail, instance)
    return problem(Internal.code, row.status, row.title, INTERNAL_DETAIL, instance)


def problem(code: str, status: int, title: str, detail: str, instance: str) -> Problem:
    return Problem(f"{PROBLEM_PATH}/{code}", title, status, detail, instance, detail)


def instance_of(path: str, request_id: str) -> str:
    """A URI reference for one occurrence: the path, and the request's id as its fragment."""
    return f"{quote(path)}#{quote(request_id)}"


def error_response(error: ConvMLPError, instance: str) -> Response:
    headers = {}
    if isinstance(error, RetryLater):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = ", ".join(CODINGS)  # RFC 9110, section 15.5.16
    return problem_response(problem_of(error, instance), headers)


def problem_response(problem: Problem, headers: dict[str, str]) -> Response:
    """The response; its form depends on the path that `instance` begins with."""
    form = next((form for form in ERROR_FORMS if problem.instance.startswith(form.paths)), None)
    if form is None:
        return Response(msgspec.json.encode(problem), problem.status, headers, PROBLEM_MEDIA_TYPE)
    if problem.status in form.statuses:
        problem = msgspec.structs.replace(problem, status=form.statuses[problem.status])
    members = {**form.more(problem), **msgspec.structs.asdict(problem)}
    return Response(msgspec.json.encode(members), problem.status, headers, JSON_MEDIA_TYPE)
