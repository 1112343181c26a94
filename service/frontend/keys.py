"""API keys from a file: one a line, with a name before it if one likes; `#` begins a comment.

    # name    key
    partner   5f3c0e8a1b7d4f60
    9d1b2c3a4e5f6071

Two keys may have one name, so that a caller can go from one to the other; they share its rate.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from pathlib import Path

import structlog

from service.frontend.stamp import stamp

MAX_FILE_BYTES = 2**20
MIN_KEY_LENGTH = 16
"""Nothing but its length keeps a key from being guessed."""
LOOK_INTERVAL_S = 2.0
"""How often the file is looked at for changes."""

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What may stand behind `Bearer` (RFC 6750, section 2.1), but for where `=` may stand."""

log = structlog.get_logger(__name__)


class KeysUnusable(Exception):
    """The file of API keys is missing, unreadable, empty or malformed. The message quotes no key."""


class ApiKeys:
    """The keys of a file. They are held as hashes under a secret of this process.

    So how long a look-up takes tells nothing of a key: nobody outside can choose the hashes that are compared.
    """

    def __init__(self, path: Path) -> None:
        """Raises KeysUnusable."""
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._stamp = stamp(path)
        self._names = self._read()

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for a wrong one."""
        return self._names.get(self._hash(key))

    async def follow(self, interval_s: float = LOOK_INTERVAL_S) -> None:
        """Read the file again whenever it changed. One that cannot be used is logged, and the last good keys stay."""
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        now = stamp(self._path)
        if now == self._stamp:
            return
        self._stamp = now
        try:
            self._names = self._read()
        except KeysUnusable as error:
            log.error("the API keys stay as they were", error=str(error))
        else:
            log.info("the API keys were read again", keys=len(self._names))

    def _read(self) -> dict[bytes, str]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise KeysUnusable(f"{self._path}: {error.strerror}; expected a file with an API key a line") from None
        if len(data) > MAX_FILE_BYTES:
            raise KeysUnusable(f"{self._path}: more than {MAX_FILE_BYTES:,} bytes; expected a file of API keys")
        names: dict[bytes, str] = {}
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) > 2:
                raise KeysUnusable(
                    f"{self._path}, line {number}: expected `KEY` or `NAME KEY`, found {len(words)} words"
                )
            key = words[-1]
            if len(key) < MIN_KEY_LENGTH or not _KEY.fullmatch(key):
                raise KeysUnusable(
                    f"{self._path}, line {number}: a key has at least {MIN_KEY_LENGTH} characters of A-Z a-z 0-9 "
                    "and ._~+/=-; `openssl rand -hex 32` makes one"
                )
            digest = self._hash(key)
            if digest in names:
                raise KeysUnusable(f"{self._path}, line {number}: the key stands on an earlier line as well")
            names[digest] = words[0] if len(words) == 2 else f"key of line {number}"
        if not names:
            raise KeysUnusable(f"{self._path}: no API key in it; expected one a line")
        return names

    def _hash(self, key: str) -> bytes:
        return hmac.digest(self._secret, key.encode("utf-8", "replace"), "sha256")
