"""A headless Chromium and its tabs, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

from tests.waiting import PATIENCE_S, eventually

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""The browser's own test pattern in place of a camera, and its permission."""


@dataclass
class Tab:
    """`requests` are the URLs that the page asked for, `complaints` its errors, CSP violations among them."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def run(self, script: str) -> Any:  # noqa: ANN401
        """The value of a JavaScript expression; a promise is awaited."""
        return await self.page.evaluate(script)

    async def until(self, script: str) -> None:
        """Wait for an expression to be true. Playwright's own way needs eval, which the pages' CSP forbids."""
        await eventually(lambda: self.run(script))

    def foreign(self, origin: str) -> list[str]:
        """The requests that went elsewhere."""
        return [url for url in self.requests if not url.startswith((f"{origin}/", "blob:", "data:"))]


async def accessibility_faults(tab: Tab) -> list[str]:
    """What axe-core finds in the page as it is now: rules and elements."""
    await tab.run((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = await tab.run("axe.run()")
    return [f"{rule['id']}: {[node['html'] for node in rule['nodes']]}" for rule in found["violations"]]


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """A new process; a tab takes a tenth of the time that its start takes."""
    assert CHROMIUM is not None
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=[*FLAGS, *CAMERA]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def open_tab(browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False) -> AsyncIterator[Tab]:
    """A tab with a profile of its own: it shares no storage, cookies or cache with others."""
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        permissions=["clipboard-read", "clipboard-write", "camera"],
    )
    try:
        context.set_default_timeout(PATIENCE_S * 1000)
        tab = Tab(await context.new_page())
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on(
            "console",
            lambda message: tab.complaints.append(message.text) if message.type == "error" else None,
        )
        yield tab
    finally:
        await context.close()
