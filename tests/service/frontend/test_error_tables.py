"""Each row of the contract's table of errors, provoked over both front-ends by the same cases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from convmlp.v1 import vision_pb2 as pb
from model.errors import BundleInvalid, ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from service.errors import (
    DOMAIN_ERRORS,
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
    Unauthenticated,
    Unavailable,
    UnsupportedEncoding,
    UrlRefused,
)
from tests.service.frontend.both_transports import Pair, open_pair
from tests.service.frontend.fault_scenarios import (
    BACKLOG_S,
    START_S,
    Scene,
    busy,
    draining,
    frugal,
    full,
    guarded,
    losing,
    poisoned,
    rationed,
    slow,
    starting,
)
from tests.service.frontend.grpc_server import reason, refusal, request_id, retry_s, rich
from tests.service.frontend.rest_server import oversized_png, picture
from tests.waiting import until


@dataclass(frozen=True)
class Question:
    """One image to classify, for both transports."""

    image: bytes = field(default_factory=picture)
    image_url: str = ""
    model: str | None = None
    top_k: int | None = None
    timeout_s: float | None = None
    authorization: str | None = None


@dataclass(frozen=True)
class Refusal:
    """What a caller learns: the status, the name of the error, the words, and when to come back."""

    status: int | grpc.StatusCode
    name: str
    detail: str
    retry_after_s: float | None


async def over_rest(pair: Pair, question: Question) -> Refusal:
    parameters = {"model": question.model, "top_k": question.top_k}
    headers = {"X-Request-Id": "mine"}
    if question.timeout_s is not None:
        headers["X-Request-Timeout-Ms"] = str(round(question.timeout_s * 1000))
    if question.authorization is not None:
        headers["Authorization"] = question.authorization
    response = await pair.http.post(
        "/classify",
        content=question.image_url or question.image,
        params={name: value for name, value in parameters.items() if value is not None},
        headers=headers,
    )
    problem: dict[str, Any] = json.loads(response.content)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine"
    assert problem["status"] == response.status_code
    assert problem["instance"] == "/classify#mine"
    retry_after = response.headers.get("retry-after")
    return Refusal(
        response.status_code,
        problem["type"].removeprefix("/problems/"),
        problem["detail"],
        int(retry_after) if retry_after is not None else None,
    )


async def over_grpc(pair: Pair, question: Question) -> Refusal:
    metadata = [("x-request-id", "mine")]
    if question.authorization is not None:
        metadata.append(("authorization", question.authorization))
    image = b"" if question.image_url else question.image
    request = pb.ClassifyRequest(
        image=image, image_url=question.image_url, model=question.model or "", top_k=question.top_k
    )
    call = pair.rpc.stub.Classify(request, timeout=question.timeout_s, metadata=tuple(metadata))
    error = await refusal(call)
    status = rich(error)
    assert dict(error.trailing_metadata())["x-request-id"] == request_id(status) == "mine"
    return Refusal(error.code(), reason(status).lower().replace("_", "-"), status.message, retry_s(status))


Transport = Callable[[Pair, Question], Coroutine[Any, Any, Refusal]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def well() -> AsyncIterator[Pair]:
    """Front-ends with nothing the matter with them."""
    async with open_pair() as pair:
        yield pair


@dataclass(frozen=True)
class Case:
    """How an error comes about, and the contract's row for it.

    `scene` None: without anything else. `retry`: the caller gets the time to come back.
    """

    name: str
    scene: Scene | None
    question: Question
    error: type[ConvMLPError]
    http: int
    code: grpc.StatusCode
    retry: bool = False
    error_over_rest: type[ConvMLPError] | None = None


INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

CASES = (
    Case("corrupt", None, Question(b"\x89PNG\r\n\x1a\n and then"), ImageUndecodable, 400, INVALID),
    Case("truncated", None, Question(picture(form="JPEG")[:400]), ImageUndecodable, 400, INVALID),
    Case("empty", None, Question(b""), ImageUndecodable, 400, INVALID, error_over_rest=BadRequest),
    Case("format", None, Question(b"%PDF-1.7 not a picture"), UnsupportedFormat, 415, INVALID),
    Case("bytes", frugal, Question(picture() + bytes(1000)), ImageTooLarge, 413, INVALID),
    Case("pixels", None, Question(oversized_png(20_000, 20_000)), ImageTooLarge, 413, INVALID),
    Case("URL", None, Question(image_url="https://example.org/cat.jpg"), UrlRefused, 422, INVALID),
    Case("parameter", None, Question(top_k=0), BadParameter, 422, INVALID),
    Case("other task's model", None, Question(model="fake_detect"), BadParameter, 422, INVALID),
    Case("no such model", None, Question(model="nothing"), ModelNotFound, 404, grpc.StatusCode.NOT_FOUND),
    Case("no key", guarded, Question(), Unauthenticated, 401, grpc.StatusCode.UNAUTHENTICATED),
    Case(
        "wrong key",
        guarded,
        Question(authorization="Bearer fedcba9876543210"),
        Unauthenticated,
        401,
        grpc.StatusCode.UNAUTHENTICATED,
    ),
    Case("full queue", full, Question(), Overloaded, 503, EXHAUSTED, retry=True),
    Case("deadline out of reach", slow, Question(timeout_s=600.0), Overloaded, 503, EXHAUSTED, retry=True),
    Case("over the rate", rationed, Question(), RateLimited, 429, EXHAUSTED, retry=True),
    Case("starting", starting, Question(), Unavailable, 503, UNAVAILABLE, retry=True),
    Case("draining", draining, Question(), Unavailable, 503, UNAVAILABLE, retry=True),
    Case("worker lost", losing, Question(), Unavailable, 503, UNAVAILABLE, retry=True),
    Case("deadline passed", busy, Question(), DeadlineExceeded, 504, grpc.StatusCode.DEADLINE_EXCEEDED),
    Case("device failure", poisoned, Question(picture(66)), Internal, 500, grpc.StatusCode.INTERNAL),
)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("transport", [over_rest, over_grpc], ids=["rest", "grpc"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_row(case: Case, transport: Transport, well: Pair, tmp_path: Path) -> None:
    """An error has its row's status, its name, the request's id, and the time to retry if there is one.

    After a caller's fault the service answers the next request.
    """
    async with case.scene(tmp_path) if case.scene else nullcontext(well) as pair, asyncio.timeout(60):
        refusal_ = await transport(pair, case.question)
        if case.scene is None:
            assert (await pair.http.post("/classify", content=picture())).status_code == 200
            assert (await pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture()))).labels
    if transport is over_rest:
        assert (refusal_.status, refusal_.name) == (case.http, (case.error_over_rest or case.error).code)
    else:
        assert (refusal_.status, refusal_.name) == (case.code, case.error.code)
    assert (refusal_.retry_after_s is not None) == case.retry
    assert refusal_.retry_after_s is None or refusal_.retry_after_s > 0
    assert refusal_.detail
    assert "poison" not in refusal_.detail


def test_every_error_is_provoked() -> None:
    """No domain error is without a case, but for what no prediction meets: changing what is served, and bundles.

    gRPC decompresses its messages itself, so that an unknown coding is HTTP's alone, as Accept is. Fetches need a
    site to fail at: test_image_urls.py has one.
    """
    provoked = {case.error for case in CASES} | {case.error_over_rest for case in CASES} - {None}
    assert provoked == set(DOMAIN_ERRORS) - {
        Forbidden,
        ModelInvalid,
        BundleInvalid,
        UnsupportedEncoding,
        NotAcceptable,
        FetchFailed,
        FetchTimeout,
    }


@pytest.mark.parametrize("transport", [over_rest, over_grpc], ids=["rest", "grpc"])
async def test_wait_is_the_worker_s_estimate(transport: Transport, tmp_path: Path) -> None:
    """A request that cannot be answered before its deadline gets the time until it could, as the worker estimates."""
    async with slow(tmp_path) as pair:
        refusal_ = await transport(pair, Question(timeout_s=600.0))
    assert refusal_.retry_after_s is not None
    assert 0 < refusal_.retry_after_s <= BACKLOG_S
    assert refusal_.retry_after_s > 600


@pytest.mark.parametrize("transport", [over_rest, over_grpc], ids=["rest", "grpc"])
async def test_wait_for_a_lost_worker_is_the_time_of_its_start(transport: Transport, tmp_path: Path) -> None:
    """The request that loses the worker, those after it, and the readiness probe get the time that a start takes."""
    async with losing(tmp_path) as pair:
        refusals = [await transport(pair, Question()) for _ in range(2)]
        # Each front-end finds out by itself, and the probe asks the one for REST.
        await until(lambda: not pair.rest.engine.readiness().ready)
        readiness = await pair.http.get("/readyz")
    waits_s = [refusal_.retry_after_s for refusal_ in refusals] + [int(readiness.headers["retry-after"])]
    assert all(wait_s is not None and START_S / 2 < wait_s <= START_S for wait_s in waits_s), waits_s
    assert readiness.status_code == 503
