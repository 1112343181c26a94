"""The reference at /docs in a real browser, against a real front-end."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from model.reference import REFERENCE_PICTURE
from tests.browser.chromium import CHROMIUM, accessibility_faults, open_tab
from tests.service.frontend.rest_server import open_rest

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_reference_shows_every_operation_and_sends_requests(browser: Browser, dark: bool) -> None:
    """/docs lists all operations of openapi.json, sends a request from the page and shows its answer and its command,
    all without another host's help and within the page's Content-Security-Policy. axe finds no violation before and
    after it."""
    async with open_rest() as rest, open_tab(browser, dark=dark) as tab:
        await tab.page.goto(f"http://127.0.0.1:{rest.port}/docs")
        await tab.page.locator(".opblock").first.wait_for()
        shown = await tab.page.locator("#reference").inner_text()
        for path in (await rest.http.get("/openapi.json")).json()["paths"]:
            assert path in shown.replace("\u200b", "")
        assert await accessibility_faults(tab) == []
        classify = tab.page.locator("#operations-predictions-classify")
        await classify.locator(".opblock-summary-control").click()
        await classify.locator("input[type=file]").set_input_files(REFERENCE_PICTURE)
        await classify.locator("button.execute").click()
        answer = classify.locator(".live-responses-table")
        await answer.wait_for()
        assert "fake_classify" in await answer.inner_text()
        assert REFERENCE_PICTURE.name in await classify.locator(".request-snippets").inner_text()
        assert await accessibility_faults(tab) == []
        assert tab.complaints == []
        assert tab.foreign(f"http://127.0.0.1:{rest.port}") == []
