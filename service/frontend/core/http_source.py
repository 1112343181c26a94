"""HTTP requests for pictures that callers name by URL: to allowed hosts, at checked addresses, with bounded redirects.

A host's name is resolved once for each connection, every address of it is checked, and the connection goes to one of
these very addresses. So a name that resolves to another address later gains nothing. httpcore2 has neither proxies of
the environment, nor cookies, nor .netrc; it gets one connection for each request, which is closed after it.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

import httpcore2
import httpx2
import structlog

from service.errors import FetchFailed, UrlRefused
from service.frontend.core.address_policy import DEFAULT_PORTS, Address, AddressPolicy, HostRule, normal_host

MAX_URL = 4096
"""Characters. Signed URLs of object stores have one or two thousand."""
MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_ADDRESSES = 4
"""Addresses of a name that are tried, one after the other."""
CONNECT_TIMEOUT_S = 5.0
"""For one address."""
RESOLVER_THREADS = 8
"""The system's resolver cannot be interrupted, and may take half a minute."""
USER_AGENT = f"convmlp-serving/{version('convmlp-serving')}"

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host's name, as text. Raises OSError."""

log = structlog.get_logger(__name__)


class SystemResolver:
    """`getaddrinfo`, in threads of its own: a name service that hangs must not hold threads of others."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _addresses, host, port)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with status 200 whose body is still to be read. `nbytes` is its Content-Length, if it has one."""

    host: str
    nbytes: int | None
    chunks: AsyncIterator[bytes]


class HttpSource:
    """Opens URLs. `tls`: the certificates that are trusted; by default those of the system, or of SSL_CERT_FILE."""

    def __init__(
        self,
        rules: Sequence[HostRule],
        addresses: AddressPolicy,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._system = SystemResolver()
        self._backend = _CheckedBackend(addresses, resolve or self._system)
        self._tls = tls or ssl.create_default_context()

    def close(self) -> None:
        self._system.close()

    def parse(self, text: str) -> httpx2.URL:
        """The URL of a picture.

        Raises:
            UrlRefused: it is none, its scheme is not http or https, it has a user's name or password, or its host is
                not allowed.
        """
        if len(text) > MAX_URL:
            raise UrlRefused(f"the picture's URL has {len(text)} characters; expected at most {MAX_URL}")
        try:
            url = httpx2.URL(text)
            host, port = url.host, url.port
        except (httpx2.InvalidURL, ValueError):
            raise UrlRefused("the picture's URL is malformed; expected https://HOST/PATH") from None
        if url.scheme not in DEFAULT_PORTS or not host:
            raise UrlRefused("the picture's URL is not of http or https; expected https://HOST/PATH")
        if url.userinfo:
            raise UrlRefused("the picture's URL has a user's name or password, which is not sent; leave it out")
        if host.endswith("."):  # a certificate's names are without the root's dot
            url = url.copy_with(host=host[:-1])
        host, port = normal_host(url.raw_host.decode("ascii")), DEFAULT_PORTS[url.scheme] if port is None else port
        if not any(rule.allows(url.scheme, host, port) for rule in self._rules):
            raise UrlRefused(
                f"this service does not fetch pictures from {_place(url)}; its operator can allow the host with the "
                "setting fetch_urls"
            )
        return url

    @asynccontextmanager
    async def open(self, url: httpx2.URL, authorization: str | None = None) -> AsyncIterator[Answer]:
        """The answer to a GET, after at most `MAX_REDIRECTS` redirects to allowed URLs.

        `authorization` is sent to the URL's own origin, and to none that it redirects to.

        Raises:
            UrlRefused: a redirect leads to a URL, or a name to an address, that is not allowed.
            FetchFailed: the host cannot be reached, or answers with anything but a picture.
        """
        origin = (url.scheme, url.host, url.port)
        for _ in range(MAX_REDIRECTS + 1):
            own = authorization if (url.scheme, url.host, url.port) == origin else None
            try:
                async with self._connection(url) as connection:
                    response = await connection.handle_async_request(_request(url, own))
                    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                    if response.status not in REDIRECTS:
                        nbytes = _checked_length(url, response.status, headers)
                        async with aclosing(response.aiter_stream()) as chunks:
                            yield Answer(url.host, nbytes, chunks)
                        return
            except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
                raise _failure(url.host, error) from None
            url = self._redirected(url, headers.get(b"location", ""))
        raise FetchFailed(f"{url.host} redirects more than {MAX_REDIRECTS} times; give the picture's own URL")

    @asynccontextmanager
    async def _connection(self, url: httpx2.URL) -> AsyncIterator[httpcore2.AsyncHTTPConnection]:
        connection = httpcore2.AsyncHTTPConnection(_target(url).origin, self._tls, network_backend=self._backend)
        try:
            yield connection
        finally:
            await connection.aclose()

    def _redirected(self, url: httpx2.URL, location: str) -> httpx2.URL:
        try:
            target = url.join(location)
        except (httpx2.InvalidURL, ValueError):
            raise FetchFailed(f"{url.host} redirects to no valid URL") from None
        if not location:
            raise FetchFailed(f"{url.host} redirects without a Location")
        if url.scheme == "https" and target.scheme == "http":
            raise UrlRefused(f"{url.host} redirects from https to http, which is not followed")
        try:
            return self.parse(str(target))
        except UrlRefused as error:
            raise UrlRefused(f"{url.host} redirects: {error}") from None


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Connects to addresses that the policy allows, and to no other."""

    def __init__(self, addresses: AddressPolicy, resolve: Resolve) -> None:
        self._addresses = addresses
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109, ARG002  (httpcore2's)
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address of `host` that accepts one.

        Raises:
            UrlRefused: an address of the host is not allowed.
            httpcore2.NetworkError, httpcore2.TimeoutException: no address is reached.
        """
        last: Exception = httpcore2.ConnectError("it has no address")
        for address in (await self._checked(host, port))[:MAX_ADDRESSES]:
            try:
                stream = await super().connect_tcp(str(address), port, CONNECT_TIMEOUT_S, local_address, socket_options)
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                last = error
                continue
            peer = stream.get_extra_info("server_addr")
            if ipaddress.ip_address(peer[0]) != address:
                await stream.aclose()
                raise self._refused(host, peer[0])
            return stream
        raise last

    async def _checked(self, host: str, port: int) -> list[Address]:
        """All addresses of a host. One that is not allowed refuses the host: a mixture is how filters are evaded."""
        try:
            found = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                found = [ipaddress.ip_address(text) for text in await self._resolve(host, port)]
            except (OSError, UnicodeError):
                raise FetchFailed(f"cannot fetch the picture from {host}: its name cannot be resolved") from None
        for address in found:
            if not self._addresses.allows(address):
                raise self._refused(host, str(address))
        return found

    def _refused(self, host: str, address: str) -> UrlRefused:
        # The address is for the operator: callers must not learn the addresses of internal names.
        log.warning("refused to fetch from an address that is not public", host=host, address=address)
        return UrlRefused(
            f"{host} has an address that is not public; the service's operator can allow its network with the setting "
            "fetch_private_networks"
        )


def _target(url: httpx2.URL) -> httpcore2.URL:
    port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    return httpcore2.URL(scheme=url.scheme.encode(), host=url.raw_host, port=port, target=url.raw_path)


def _request(url: httpx2.URL, authorization: str | None) -> httpcore2.Request:
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", USER_AGENT.encode("ascii")),
        # Django REST framework, and so Label Studio, refuses a type that no renderer of a view has.
        (b"Accept", b"image/*, */*;q=0.8"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]
    if authorization is not None:
        headers.append((b"Authorization", authorization.encode("latin-1")))
    return httpcore2.Request(b"GET", _target(url), headers=headers)


def _failure(host: str, error: Exception) -> FetchFailed:
    """The error for the caller. It names the host alone: the rest of a URL may be secret."""
    match error, _system_error(error):
        case httpcore2.TimeoutException(), _:
            reason = "no connection in time"
        case _, ssl.SSLCertVerificationError() as cause:
            reason = f"its TLS certificate is not trusted: {cause.verify_message}"
        case _, ssl.SSLError():
            reason = "the TLS handshake failed"
        case httpcore2.ConnectError(), OSError(errno=int(errno)):
            reason = os.strerror(errno).lower()  # asyncio's own text has the address
        case httpcore2.ConnectError(), _:
            reason = "no connection"
        case httpcore2.ProtocolError(), _:
            reason = "its answer is not valid HTTP, or is cut off"
        case _:
            reason = "the connection broke"
    return FetchFailed(f"cannot fetch the picture from {host}: {reason}")


def _system_error(error: BaseException | None) -> OSError | None:
    """The innermost OSError that caused an error."""
    found = None
    while error is not None:
        if isinstance(error, OSError):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _checked_length(url: httpx2.URL, status: int, headers: dict[bytes, str]) -> int | None:
    """The Content-Length of a picture. Raises FetchFailed for an answer that is none."""
    if status != http.HTTPStatus.OK:
        known = f" {http.HTTPStatus(status).phrase}" if status in list(http.HTTPStatus) else ""
        raise FetchFailed(f"{url.host} answers {status}{known} for the picture's URL")
    coding = headers.get(b"content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise FetchFailed(f"{url.host} sends the picture with Content-Encoding {coding[:40]!r}; expected none")
    length = headers.get(b"content-length", "")
    return int(length) if length.isdigit() else None


def _place(url: httpx2.URL) -> str:
    return url.host if url.port is None else f"{url.host}, port {url.port}"


def _addresses(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
