"""Runs `convmlp …` as users do: in another process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.fork_server import run
from tests.service.frontend.rest_server import Rest


@dataclass(frozen=True)
class Completed:
    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


@asynccontextmanager
async def started(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`convmlp` with these arguments; killed at the end of the context if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def convmlp(*arguments: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> Completed:
    """Run `convmlp` with these arguments to its end."""
    variables = {**os.environ, **(environment or {})}
    status, out, err = await asyncio.to_thread(run, arguments, stdin, variables)
    return Completed(status, out, err.decode())


def url(rest: Rest) -> str:
    return str(rest.http.base_url)
