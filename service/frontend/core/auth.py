"""Who may use the service, and how often: API keys, and rates. Every transport checks both before it reads an image.

A file has one API key a line, optionally after a name; `#` begins a comment:

    # name    key
    partner   5f3c0e8a1b7d4f60
    9d1b2c3a4e5f6071

Two keys may have one name, so that a caller can change from one to the other; they share its rate.

A transport calls `identify` once for each request (for each gRPC stream: once), `admit` once for each image that it is
about to read, and `charge` for further images in one body. Nothing here waits or reads a file during a request.

Open to everyone: health and readiness (`/livez`, `/readyz`, `/v2/health/*`, `grpc.health.v1`), `/metrics`, gRPC
reflection, the pages and `/openapi.json`. All else needs a key where keys are set, and so do `protected_paths`.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import NewType

import structlog

from service.errors import RateLimited, Refusal, Unauthenticated
from service.frontend.core.proxies import TrustedProxies, trusted_proxies
from service.frontend.core.rate_limit import RateLimit
from service.frontend.core.renewal import file_version
from service.observability.metrics import FrontEndMetrics
from service.settings import Settings

MAX_FILE_BYTES = 2**20
MIN_KEY_LENGTH = 16
"""Only its length keeps a key from being guessed."""

CHECK_INTERVAL_S = 2.0
"""How often the file is checked for changes."""

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""The characters of a bearer token (RFC 6750, section 2.1); where `=` may stand is not checked."""

log = structlog.get_logger(__name__)

Caller = NewType("Caller", str)
"""The owner of a rate: a key's name, or a host. Never a key, so it may be logged."""

Charge = Callable[[Caller, int], None]
"""Counts so many more images of a request that was admitted as one image, by its caller's rate."""


class InvalidKeysFile(Exception):
    """The file of API keys is missing, unreadable, empty or malformed. The message quotes no key."""


class ApiKeys:
    """The keys of a file, held as hashes under a secret of this process.

    So the time that a look-up takes reveals nothing about a key: no caller can choose the hashes that are compared.
    """

    def __init__(self, path: Path) -> None:
        """Raises InvalidKeysFile."""
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._version = file_version(path)
        self._names = self._read()

    def name_of(self, key: str) -> str | None:
        """The name of the key; None for a wrong one."""
        return self._names.get(self._hash(key))

    async def follow(self, interval_s: float = CHECK_INTERVAL_S) -> None:
        """Read the file again whenever it changes. An invalid file is logged, and the last valid keys stay in use."""
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        now = file_version(self._path)
        if now == self._version:
            return
        self._version = now
        try:
            self._names = self._read()
        except InvalidKeysFile as error:
            log.error("API keys not reloaded; the previous ones stay in use", error=str(error))
        else:
            log.info("API keys reloaded", keys=len(self._names))

    def _read(self) -> dict[bytes, str]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InvalidKeysFile(f"{self._path}: {error.strerror}; expected a file with an API key a line") from None
        if len(data) > MAX_FILE_BYTES:
            raise InvalidKeysFile(f"{self._path}: more than {MAX_FILE_BYTES:,} bytes; expected a file of API keys")
        names: dict[bytes, str] = {}
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) > 2:
                raise InvalidKeysFile(
                    f"{self._path}, line {number}: expected `KEY` or `NAME KEY`, found {len(words)} words"
                )
            key = words[-1]
            if len(key) < MIN_KEY_LENGTH or not _KEY.fullmatch(key):
                raise InvalidKeysFile(
                    f"{self._path}, line {number}: a key has at least {MIN_KEY_LENGTH} characters of A-Z a-z 0-9 "
                    "and ._~+/=-; `openssl rand -hex 32` makes one"
                )
            digest = self._hash(key)
            if digest in names:
                raise InvalidKeysFile(f"{self._path}, line {number}: the key is on an earlier line as well")
            names[digest] = words[0] if len(words) == 2 else f"key of line {number}"
        if not names:
            raise InvalidKeysFile(f"{self._path}: has no API key; expected one a line")
        return names

    def _hash(self, key: str) -> bytes:
        return hmac.digest(self._secret, key.encode("utf-8", "replace"), "sha256")


class Auth:
    """The checks of a front-end process, shared by its transports. Rates are per process.

    `keys`: None needs no key. `limit`: None limits no rate. `proxies`: None believes no header about an address.
    """

    def __init__(
        self,
        keys: ApiKeys | None,
        limit: RateLimit | None,
        metrics: FrontEndMetrics,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self.proxies = proxies
        self._keys = keys
        self._limit = limit
        self._metrics = metrics
        self.is_open = keys is None and limit is None
        """Whether every caller is served, at any rate."""

    @property
    def needs_key(self) -> bool:
        return self._keys is not None

    def identify(self, authorization: str | None, host: str) -> Caller:
        """The caller. `authorization` is the header's whole value; `host` is its address, without a port.

        Raises:
            Unauthenticated: keys are set, and the request has none or a wrong one.
        """
        if self._keys is None:
            return Caller(network_of(host) if self._limit is not None else host)
        key = _key_in(authorization or "")
        if not key:
            self._metrics.rejected(Refusal.CREDENTIALS)
            raise _unauthenticated("this service needs an API key and the request has none")
        name = self._keys.name_of(key)
        if name is None:
            self._metrics.rejected(Refusal.CREDENTIALS)
            raise _unauthenticated("the API key is wrong")
        return Caller(name)

    def admit(self, caller: Caller) -> None:
        """Admit one image of the caller's.

        Raises:
            RateLimited: the caller is over its rate; `retry_after_s` is the time until its next image is admitted.
        """
        if self._limit is None:
            return
        wait_s = self._limit.take(caller)
        if wait_s > 0:
            self._metrics.rejected(Refusal.RATE)
            raise RateLimited(
                f"this caller sent more than {self._limit.per_s:g} images a second; try again in {wait_s:.3g} s",
                wait_s,
            )

    def charge(self, caller: Caller, images: int) -> None:
        """Count `images` more of a request that was admitted as one image. They delay the caller's next ones."""
        if self._limit is not None:
            self._limit.charge(caller, images)


@asynccontextmanager
async def open_auth(settings: Settings, metrics: FrontEndMetrics) -> AsyncIterator[Auth]:
    """The checks that the settings configure. The file of keys is read again whenever it changes.

    Raises:
        InvalidKeysFile: the file of keys cannot be used.
    """
    proxies = trusted_proxies(settings)
    limit = RateLimit(settings.rate_limit_per_s, settings.rate_limit_burst) if settings.rate_limit_per_s else None
    if settings.api_keys_file is None:
        yield Auth(None, limit, metrics, proxies)
        return
    keys = ApiKeys(settings.api_keys_file)
    following = asyncio.create_task(keys.follow())
    try:
        yield Auth(keys, limit, metrics, proxies)
    finally:
        following.cancel()


@lru_cache(maxsize=4096)
def network_of(host: str) -> str:
    """The address; of IPv6 its /64, because one caller usually has all addresses of a /64."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket has no address
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _key_in(authorization: str) -> str:
    """The key in the header's value: a bearer's token, or the password of basic authentication, with any user name.

    Empty where there is none. Some clients, such as Label Studio, have no other way to send a key than a password.
    """
    scheme, _, credentials = authorization.strip().partition(" ")
    credentials = credentials.strip()
    match scheme.lower():
        case "bearer":
            return credentials
        case "basic":
            try:
                return base64.b64decode(credentials, validate=True).decode("utf-8", "replace").partition(":")[2]
            except ValueError:
                return ""
        case _:
            return ""


def _unauthenticated(message: str) -> Unauthenticated:
    return Unauthenticated(message).with_advice(
        http="send the header `Authorization: Bearer KEY`",
        grpc="send the metadata `authorization` with `Bearer KEY`",
    )
