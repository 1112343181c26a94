"""A running service, asked over REST: one image a request, several requests at a time.

The service makes batches of what comes together, so one request of many images would gain nothing, and would put
them all under one deadline.
"""

from __future__ import annotations

import asyncio
import time

import httpx
import msgspec

from model.errors import ConvMLPError
from model.types import Task
from service.cli.answerer import Answer, NoAnswer
from service.cli.words import complain
from service.errors import BadParameter, RetryLater, error_from_code
from service.frontend.render import PictureFormat
from service.frontend.rest.errors import PROBLEM_MEDIA_TYPE, Problem

ATTEMPTS = 4
LONGEST_WAIT_S = 15.0
"""A service that wants to be left alone for longer is not asked again."""
CONNECT_S = 10.0
PATIENCE_S = 120.0
"""For an answer, where the caller names no time; the service's own limit is shorter."""
TRANSFER_S = 5.0
"""What an answer may take on its way, beyond the time that the service was given."""


class Remote:
    """The service at `url`, asked for `task` with the parameters of `query_string`."""

    concurrency = 8

    def __init__(self, url: str, task: Task, query_string: str, timeout_ms: int | None) -> None:
        """Raises BadParameter where `url` is not one of HTTP."""
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise BadParameter(f"--url {url!r} is not a URL: {error}") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise BadParameter(f"--url {url!r} does not begin with http://HOST or https://HOST")
        self._url = url
        self._path = f"/{task.value}?{query_string}"
        self._timeout_s = timeout_ms / 1000 if timeout_ms is not None else None
        self._client = httpx.AsyncClient(base_url=address)

    async def answer(self, image: bytes) -> Answer:
        """The service's answer.

        Raises:
            NoAnswer: nothing answered, or something else than this service.
            ConvMLPError: the error that the service answered.
        """
        body = await self._ask(image, "application/json")
        try:
            answer = msgspec.json.decode(body, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NoAnswer(f"{self._url} answered something else than this service does: {error}") from error
        if len(answer.results) != 1:
            raise NoAnswer(f"{self._url} gave {len(answer.results)} results for one image")
        return answer

    async def draw(self, image: bytes, picture_format: PictureFormat) -> bytes:
        """The image with the answer drawn on it. Raises as `answer`."""
        return await self._ask(image, f"image/{picture_format.name.lower()}")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _ask(self, image: bytes, media_type: str) -> bytes:
        deadline_s = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        for attempt in range(1, ATTEMPTS + 1):
            response = await self._post(image, media_type, deadline_s)
            if response.is_success and response.headers.get("content-type") == media_type:
                return response.content
            error = self._error(response)
            if not isinstance(error, RetryLater) or attempt == ATTEMPTS:
                raise error
            wait_s = error.retry_after_s
            if wait_s > LONGEST_WAIT_S or (deadline_s is not None and time.monotonic() + wait_s > deadline_s):
                raise error
            complain(f"{error.detail}; trying again in {wait_s:g} s")
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, image: bytes, media_type: str, deadline_s: float | None) -> httpx.Response:
        headers = {"Accept": media_type}
        patience_s = PATIENCE_S
        if deadline_s is not None:
            left_ms = max(1, round((deadline_s - time.monotonic()) * 1000))
            headers["X-Request-Timeout-Ms"] = str(left_ms)
            patience_s = left_ms / 1000 + TRANSFER_S
        try:
            return await self._client.post(
                self._path,
                files={"image": ("image", image, "application/octet-stream")},
                headers=headers,
                timeout=httpx.Timeout(patience_s, connect=min(patience_s, CONNECT_S)),
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoAnswer(
                f"nothing answers at {self._url}; start `convmlp serve`, name another --url, or use --local"
            ) from error
        except httpx.TimeoutException as error:
            raise NoAnswer(f"{self._url} gave no answer within {patience_s:g} s") from error
        except httpx.HTTPError as error:
            raise NoAnswer(f"{self._url} broke off before its answer ({error})") from error

    def _error(self, response: httpx.Response) -> ConvMLPError:
        """The domain error that a problem document tells of."""
        problem = _problem(response)
        if problem is None:
            return NoAnswer(
                f"{self._url} answered {response.status_code} {response.reason_phrase}, not as this service does; "
                "is --url the right one?"
            )
        wait = response.headers.get("retry-after", "")
        _, _, code = problem.type.rpartition("/")
        return error_from_code(code, problem.detail, float(wait) if wait.isdecimal() else None)


def _problem(response: httpx.Response) -> Problem | None:
    if response.headers.get("content-type") != PROBLEM_MEDIA_TYPE:
        return None
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
