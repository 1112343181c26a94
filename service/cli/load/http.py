"""An HTTP/1.1 client that uses as little CPU as Python allows.

A load client shares its machine's cores with the service that it measures. So requests are prepared bytes, connections
are kept open, and httptools parses the responses: `python -m benchmarks.client_cost` compares it with a general HTTP
client.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import httptools

from convmlp_client.transport import connection_reason

MAX_BODY_BYTES = 256 * 2**20
CONNECT_TIMEOUT_S = 10.0


class ConnectionBroken(Exception):
    """The connection failed, or ended before the response did, or the response is not HTTP."""


@dataclass(frozen=True, slots=True)
class Response:
    """Names of `headers` are in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


def request_bytes(method: str, host: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A complete request, to be sent any number of times."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return head.encode("ascii") + body


class Connections:
    """Keep-alive connections to one server, as many as there are concurrent requests."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def request(self, request: bytes, timeout_s: float) -> Response:
        """Send prepared bytes and wait for the response.

        Raises:
            ConnectionBroken: the client cannot connect, or the connection failed.
            TimeoutError: the response took longer than `timeout_s`.
        """
        connection = await self._connection()
        try:
            async with asyncio.timeout(timeout_s):
                response = await connection.request(request)
        except BaseException:
            connection.close()
            raise
        finally:
            if connection.usable:
                self._idle.append(connection)
            else:
                self._open.discard(connection)
        return response

    async def _connection(self) -> _Connection:
        while self._idle:
            if (idle := self._idle.pop()).usable:
                return idle
            self._open.discard(idle)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise ConnectionBroken(f"cannot connect within {CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise ConnectionBroken(f"cannot connect: {connection_reason(error)}") from error
        self._open.add(connection)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._open:
            connection.close()
        await asyncio.gather(*(connection.closed.wait() for connection in self._open))


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.usable = False
        self.closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: asyncio.Future[Response] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    async def request(self, request: bytes) -> Response:
        assert self._transport is not None
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._response

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's have no common class
        self.usable = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._break("the response is not HTTP/1.1")

    def connection_lost(self, error: Exception | None) -> None:
        self._break("the connection was reset" if error is not None else "the connection was closed")
        self.closed.set()

    def _break(self, reason: str) -> None:
        self.close()
        if self._response is not None and not self._response.done():
            self._response.set_exception(ConnectionBroken(reason))

    # Called by httptools

    def on_message_begin(self) -> None:
        self._headers, self._body, self._body_bytes = {}, [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._break("the response is too large")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._response is not None and not self._response.done():
            response = Response(self._parser.get_status_code(), self._headers, b"".join(self._body))
            self._response.set_result(response)
