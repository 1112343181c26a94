"""POSTs JSON to an address: bounded in what waits, in time and in retries, so that a slow receiver delays nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import httpx2

from convmlp_client.transport import connection_reason
from service.cli.sources.frame import shown

MAX_WAITING = 64
"""Bodies that wait; beyond it the oldest one is dropped."""
ATTEMPTS = 3
PAUSE_S = 0.5
"""Before the second attempt; each further pause is twice as long."""
TIMEOUT_S = 5.0
DRAIN_S = 10.0
"""For what waits when the command ends."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class Webhook:
    """Sends bodies one after the other, in their order. Use as a context manager.

    `report` prints the first failure, and the first success after it.
    """

    def __init__(self, url: str, report: Callable[[str], object]) -> None:
        """Raises ValueError: `url` is not one of http or https."""
        try:
            self._url = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ValueError(str(error)) from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ValueError("expected http://HOST/PATH or https://HOST/PATH")
        self._shown = shown(url)
        self._report = report
        self._waiting: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._closed = self._failing = self._is_sending = False
        self.delivered = self.undelivered = 0

    def post(self, body: bytes) -> None:
        """Send a body as soon as those before it are sent."""
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            self.undelivered += 1
        self._waiting.append(body)
        self._changed.set()

    async def __aenter__(self) -> Webhook:
        self._sending = asyncio.create_task(self._send_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._sending
        self.undelivered += len(self._waiting) + self._is_sending

    async def _send_all(self) -> None:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, headers={"Content-Type": "application/json"}) as client:
            while self._waiting or not self._closed:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                self._is_sending = True
                self._note(await self._send(client, self._waiting.popleft()))
                self._is_sending = False

    async def _send(self, client: httpx2.AsyncClient, body: bytes) -> str:
        """Why a body could not be delivered; empty if it was."""
        failure = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE_S * 2.0 ** (attempt - 1))
            try:
                response = await client.post(self._url, content=body)
            except httpx2.HTTPError as error:
                failure = connection_reason(error)
                continue
            if response.is_success:
                return ""
            failure = f"answers {response.status_code} {response.reason_phrase}"
            if response.status_code not in RETRIED:
                break
        return failure

    def _note(self, failure: str) -> None:
        if failure:
            self.undelivered += 1
        else:
            self.delivered += 1
        if bool(failure) != self._failing:
            self._failing = bool(failure)
            self._report(f"{self._shown}: {failure}" if failure else f"{self._shown}: answers again")
