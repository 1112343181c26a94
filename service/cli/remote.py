"""A running service, asked by the project's client: one image a request, several requests at a time.

The service makes batches of what comes together, so one request of many images would gain nothing, and would put
them all under one deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from convmlp_client.aio import AsyncClient
from convmlp_client.errors import ClientError, ConnectionFailed, ProtocolError
from convmlp_client.results import Result
from model.errors import ConvMLPError
from model.types import Task
from service.cli.answerer import NoAnswer
from service.cli.words import complain
from service.errors import BadParameter, error_from_code

PATIENCE_S = 120.0
"""For an answer, where the caller names no time; the service's own limit is shorter."""

SHORT_S = 1.0
"""A pause below is not worth a word: a service asks for a second or more."""


class Remote:
    """The service at `url`, asked for `task` with these parameters."""

    concurrency = 8

    def __init__(
        self, url: str, api_key: str | None, task: Task, parameters: Mapping[str, Any], timeout_ms: int | None
    ) -> None:
        """Raises BadParameter where no service can be asked so."""
        try:
            self._client = AsyncClient(
                url,
                api_key=api_key,
                timeout_s=PATIENCE_S if timeout_ms is None else timeout_ms / 1000,
                max_concurrency=self.concurrency,
            )
        except ValueError as error:
            raise BadParameter(f"--url or --api-key: {error}") from None
        methods: dict[Task, Callable[..., Awaitable[Result]]] = {
            Task.CLASSIFY: self._client.classify,
            Task.DETECT: self._client.detect,
            Task.SEGMENT: self._client.segment,
        }
        self._ask = methods[task]
        self._parameters = parameters
        _tell_of_waiting()

    async def answer(self, image: bytes) -> Result:
        """The service's answer.

        Raises:
            NoAnswer: nothing answered, or something else than this service.
            ConvMLPError: the error that the service answered.
        """
        try:
            return await self._ask(image, **self._parameters)
        except ClientError as error:
            raise _domain_error(error) from error

    async def aclose(self) -> None:
        await self._client.aclose()


def _domain_error(error: ClientError) -> ConvMLPError:
    match error:
        case ConnectionFailed():
            return NoAnswer(f"{error.detail}; start `convmlp serve`, name another --url, or use --local")
        case ProtocolError():
            return NoAnswer(f"{error.detail}; is --url the right one?")
        case _:
            return error_from_code(error.code, error.detail, error.retry_after_s)


def _tell_of_waiting() -> None:
    """The client logs when it waits for a service that asked it to come back later."""
    log = logging.getLogger("convmlp_client")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [_Complaining()]


class _Complaining(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        match record.args:
            case (_, float(wait_s)) if wait_s < SHORT_S:
                pass
            case _:
                complain(record.getMessage())
