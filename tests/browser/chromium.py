"""A headless Chromium, driven over its DevTools pipe: commands go to its fd 3, answers and events come from fd 4."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Page:
    """One tab. `requests` are the URLs that it asked for, `complaints` its errors, CSP violations among them."""

    def __init__(self, reader: asyncio.StreamReader, commands: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._reader = reader
        self._commands = commands
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None

    async def attach(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:  # noqa: ANN401
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._waiting[number] = asyncio.get_running_loop().create_future()
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        try:
            return await self._waiting[number]
        finally:
            del self._waiting[number]

    async def run(self, script: str) -> Any:  # noqa: ANN401
        """The value of a JavaScript expression; a promise is awaited."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait for a JavaScript expression to be true."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.run(script):
                await asyncio.sleep(0.02)

    async def listen(self) -> None:
        """Sort the browser's messages, until it ends."""
        while True:
            try:
                message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            except asyncio.IncompleteReadError:
                return
            if "id" in message:
                self._waiting[message["id"]].set_result(message.get("result", {}))
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.complaints.append(message["params"]["entry"]["text"])


@asynccontextmanager
async def open_page(profile: Path) -> AsyncIterator[Page]:
    """A tab of a new browser, whose files go into `profile`."""
    assert CHROMIUM is not None
    (from_us, commands), (events, to_us) = os.pipe(), os.pipe()
    # The shell gives the two pipes the numbers that the browser expects, whatever they are here.
    shell = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
    process = await asyncio.create_subprocess_exec(
        "/bin/bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={profile}",
        pass_fds=(from_us, to_us), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    reader = asyncio.StreamReader(limit=2**26)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(events, "rb")
    )
    page = Page(reader, commands)
    listening = asyncio.create_task(page.listen())
    try:
        await page.attach()
        yield page
    finally:
        os.close(commands)  # the browser ends when nobody can command it any more
        await process.wait()
        await listening
        transport.close()
