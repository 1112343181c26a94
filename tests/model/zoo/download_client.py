"""A client of `download` that does not wait, and files to download."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from model.zoo.download import DownloadFailed, ExpectedHash, RetryPolicy, download

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MAX_BYTES = 1_000_000
DOWNLOAD_SCRIPT = """
import sys
from pathlib import Path
from model.zoo.download import DownloadFailed, download

try:
    download(sys.argv[1], Path(sys.argv[2]), max_bytes=1_000_000, progress=print, on_retry=print)
except DownloadFailed as error:
    sys.exit(error.detail)
"""
"""The same download in a process of its own; arguments: URL and target."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def expected_hash(content: bytes) -> ExpectedHash:
    return ExpectedHash.given(sha256(content))


@dataclass
class DownloadClient:
    """Calls `download` to its own folder, with a fake sleep; records waits, notices and progress."""

    folder: Path
    read_timeout_s: float = 20.0
    waits_s: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seen: list[tuple[int, int | None]] = field(default_factory=list)

    @property
    def target(self) -> Path:
        return self.folder / "weights.pth"

    @property
    def part(self) -> Path:
        return self.folder / "weights.pth.part"

    def fetch(self, url: str, expected: ExpectedHash | None = None, *, max_attempts: int = 100) -> str:
        retry = RetryPolicy(
            connect_timeout_s=5,
            read_timeout_s=self.read_timeout_s,
            max_attempts=max_attempts,
            sleep=self.waits_s.append,
        )
        return download(
            url,
            self.target,
            max_bytes=MAX_BYTES,
            expected=expected,
            progress=lambda size, total: self.seen.append((size, total)),
            on_retry=self.notices.append,
            retry=retry,
        )

    def fails(self, url: str, expected: ExpectedHash | None = None) -> str:
        """The error of a download that must fail; it leaves no target."""
        with pytest.raises(DownloadFailed) as failed:
            self.fetch(url, expected)
        assert not self.target.exists()
        return failed.value.detail


def assert_whole(client: DownloadClient, content: bytes = CONTENT) -> None:
    """The target has the content; only the lock file is left beside it."""
    assert client.target.read_bytes() == content
    assert {path.name for path in client.folder.iterdir()} == {"weights.pth"}
