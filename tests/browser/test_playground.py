"""The pages in a real browser, against a real front-end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from model.reference import REFERENCE_PICTURE
from tests.browser.chromium import CHROMIUM, Page, open_page
from tests.model.heif_files import picture
from tests.model.picture_files import PHOTO, encoded
from tests.service.frontend.rest_server import Rest, open_rest

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

ANSWERED = "!document.getElementById('answer').hidden && document.getElementById('image').src.startsWith('blob:')"


async def open_playground(page: Page, rest: Rest) -> None:
    await page.call("Page.navigate", url=f"http://127.0.0.1:{rest.port}/")
    await page.until("document.readyState === 'complete' && document.getElementById('state').textContent === 'ready'")


async def pick(page: Page, file: Path) -> None:
    root = await page.call("DOM.getDocument")
    chooser = await page.call("DOM.querySelector", nodeId=root["root"]["nodeId"], selector="#file")
    await page.call("DOM.setFileInputFiles", nodeId=chooser["nodeId"], files=[str(file)])


async def test_playground_answers(tmp_path: Path) -> None:
    """For each task the sample gets overlay, table, timings, command and JSON, with no request to another host."""
    async with open_rest() as rest, open_page(tmp_path) as page:
        await open_playground(page, rest)
        for card in ("key-form", "command"):
            assert await page.run(f"document.getElementById('{card}').offsetHeight") == 0
        await page.run("document.getElementById('sample').click()")
        for task, word in (("classify", "grey"), ("detect", "dog"), ("segment", "background")):
            await page.run(f"document.querySelector('input[value={task}]').click()")
            await page.until(f"{ANSWERED} && document.getElementById('json').textContent.includes('\"{task}\"')")
            assert word in await page.run("document.getElementById('answer-rows').textContent")
            assert "infer" in await page.run("document.getElementById('timing-head').textContent")
            assert f"/{task}'" in await page.run("document.getElementById('curl').textContent")
            await page.until("document.getElementById('image').naturalWidth > 0")
        assert page.complaints == []
        assert all(url.startswith((f"http://127.0.0.1:{rest.port}/", "blob:", "data:")) for url in page.requests)


async def test_playground_shows_errors(tmp_path: Path) -> None:
    """A refused request shows the service's own detail, and the next good one clears it."""
    async with open_rest() as rest, open_page(tmp_path) as page:
        await open_playground(page, rest)
        paper = tmp_path / "paper.txt"
        paper.write_text("not a picture", encoding="ascii")
        await pick(page, paper)
        await page.until("document.getElementById('problem-detail').textContent.includes('JPEG')")
        assert await page.run("document.getElementById('answer').hidden")
        await pick(page, REFERENCE_PICTURE)
        await page.until(f"{ANSWERED} && document.getElementById('problem').hidden")


async def test_playground_takes_a_file(tmp_path: Path) -> None:
    """A picked file is asked about at once, and the shell command names it."""
    async with open_rest() as rest, open_page(tmp_path) as page:
        await open_playground(page, rest)
        await pick(page, REFERENCE_PICTURE)
        await page.until(ANSWERED)
        assert REFERENCE_PICTURE.name in await page.run("document.getElementById('curl').textContent")


@pytest.mark.parametrize("suffix", [".heic", ".tiff"])
async def test_playground_shows_what_the_browser_cannot(tmp_path: Path, suffix: str) -> None:
    """Of a file whose format the browser does not know, the picture with the answer drawn on it is shown."""
    file = tmp_path / f"photo{suffix}"
    file.write_bytes(picture("photo") if suffix == ".heic" else encoded(PHOTO, "TIFF"))
    async with open_rest() as rest, open_page(tmp_path) as page:
        await open_playground(page, rest)
        await pick(page, file)
        await page.until(f"{ANSWERED} && document.getElementById('image').naturalWidth > 0")
        assert await page.run("document.getElementById('image').offsetHeight") > 0
        assert file.name in await page.run("document.getElementById('curl').textContent")


async def test_playground_asks_for_a_key(tmp_path: Path) -> None:
    """Where keys are required the page asks for one, again after a wrong one, and works; only the tab stores it."""
    key = "0123456789abcdef"
    (tmp_path / "keys").write_text(f"{key}\n", encoding="ascii")

    async def give(page: Page, text: str) -> None:
        await page.until("!document.getElementById('key-form').hidden")
        await page.run(f"document.getElementById('key').value = '{text}'")
        await page.run("document.querySelector('#key-form button').click()")

    async with open_rest(api_keys_file=tmp_path / "keys") as rest, open_page(tmp_path) as page:
        await page.call("Page.navigate", url=f"http://127.0.0.1:{rest.port}/")
        await page.until("document.readyState === 'complete'")
        await give(page, "not-this-one-at-all")
        await page.until("document.getElementById('key-hint').textContent.includes('key is wrong')")
        await give(page, key)
        await page.until("document.getElementById('state').textContent === 'ready'")
        await page.until("document.querySelectorAll('#model option').length > 0")
        await page.run("document.getElementById('sample').click()")
        await page.until(ANSWERED)
        assert await page.run("document.getElementById('key-form').hidden")
        curl = await page.run("document.getElementById('curl').textContent")
        assert "Authorization: Bearer $CONVMLP_API_KEY" in curl
        assert key not in await page.run("document.documentElement.outerHTML")
        assert await page.run("Object.values(sessionStorage).length") == 1
        assert await page.run("Object.values(localStorage).length") == 0


async def test_playground_asks_again_for_a_key_that_ended(tmp_path: Path) -> None:
    """A key that is taken away while the page is open leads to a new question, and the picture is asked about again."""
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n", encoding="ascii")
    async with open_rest(api_keys_file=keys) as rest, open_page(tmp_path) as page:
        await page.call("Page.navigate", url=f"http://127.0.0.1:{rest.port}/")
        await page.until("document.readyState === 'complete' && !document.getElementById('key-form').hidden")
        await page.run("document.getElementById('key').value = '0123456789abcdef'")
        await page.run("document.querySelector('#key-form button').click()")
        await page.run("document.getElementById('sample').click()")
        await page.until(ANSWERED)
        keys.write_text("fedcba9876543210\n", encoding="ascii")
        headers = {"Authorization": "Bearer fedcba9876543210"}
        async with asyncio.timeout(20):
            while (await rest.http.get("/models", headers=headers)).status_code != 200:
                await asyncio.sleep(0.05)
        await page.run("document.getElementById('ask').click()")
        await page.until("!document.getElementById('key-form').hidden && document.getElementById('answer').hidden")
        await page.run("document.getElementById('key').value = 'fedcba9876543210'")
        await page.run("document.querySelector('#key-form button').click()")
        await page.until(ANSWERED)


async def test_reference_lists_every_operation(tmp_path: Path) -> None:
    """/docs shows all operations of openapi.json without any other host's help."""
    async with open_rest() as rest, open_page(tmp_path) as page:
        await page.call("Page.navigate", url=f"http://127.0.0.1:{rest.port}/docs")
        await page.until("document.querySelectorAll('#contents a').length > 0")
        shown = await page.run("document.getElementById('operations').textContent")
        for path in (await rest.http.get("/openapi.json")).json()["paths"]:
            assert path in shown
        assert page.complaints == []
        assert all(url.startswith((f"http://127.0.0.1:{rest.port}/", "data:")) for url in page.requests)
