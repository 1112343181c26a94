"""The page at / in a real browser, against a real front-end."""

from __future__ import annotations

import asyncio
import base64
import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from playwright.async_api import Browser

from model.reference import REFERENCE_PICTURE
from model.types import Task
from tests.browser.chromium import CHROMIUM, Tab, accessibility_faults, open_tab
from tests.fakes import coloured
from tests.model.heif_files import picture
from tests.model.picture_files import PHOTO, encoded
from tests.service.frontend.rest_server import Rest, open_rest
from tests.waiting import PATIENCE_S

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.asyncio(loop_scope="module"),
]

REFUSED = "Failed to load resource"
"""A line of the browser's console for every answer that is an error."""


async def open_playground(tab: Tab, rest: Rest) -> None:
    await tab.page.goto(f"http://127.0.0.1:{rest.port}/")
    await tab.page.locator("#state").get_by_text("ready", exact=True).wait_for()


async def answered(tab: Tab, name: str = "") -> None:
    """Wait for an answer, of the picture `name`."""
    await tab.page.locator("#answer").wait_for()
    await tab.page.locator("#timings").wait_for()
    await tab.page.locator("#code-text").get_by_text(name).wait_for()


async def canvas_size(tab: Tab) -> list[int]:
    """Width and height of the canvas' own pixels."""
    return list(await tab.run("(({ width, height }) => [width, height])(document.getElementById('canvas'))"))


async def shown_size(tab: Tab) -> list[int]:
    """Width and height in which the picture is shown."""
    script = "(({ clientWidth, clientHeight }) => [clientWidth, clientHeight])(document.querySelector('#stage img'))"
    return list(await tab.run(script))


async def code(tab: Tab, language: str) -> str:
    await tab.page.get_by_role("tab", name=language).click()
    return await tab.page.locator("#code-text").inner_text()


async def test_a_sample_is_answered_by_one_request(browser: Browser) -> None:
    """One click on a sample asks all three tasks in one request and draws it; all else on the page comes from that
    answer, without a second request, and nothing from another host."""
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.page.get_by_role("button", name="A dog and a cat").click()
        await answered(tab, "pair.jpg")
        answers = await tab.page.locator("#answers").inner_text()
        for word in ("Labels", "grey", "Detections", "dog", "Segments"):
            assert word in answers, answers
        assert await canvas_size(tab) == await shown_size(tab)
        assert "dog" in (await tab.page.locator("#canvas").get_attribute("aria-label") or "")
        assert "network" in await tab.page.locator("#timing-legend").inner_text()
        assert "batch held this picture alone" in await tab.page.locator("#ran").inner_text()

        drawn = await tab.run("document.getElementById('canvas').toDataURL()")
        await tab.page.locator(".item").first.hover()
        assert await tab.run("document.getElementById('canvas').toDataURL()") != drawn
        await tab.page.mouse.move(0, 0)
        assert await tab.run("document.getElementById('canvas').toDataURL()") == drawn
        await tab.page.locator("#score").fill("1")
        assert "nothing found" in await tab.page.locator("#answers").inner_text()
        assert "score_threshold=1" in await code(tab, "curl")
        await tab.page.locator("#class-choices label", has_text="background").click()
        assert "background" in await tab.page.locator("#answers").inner_text()

        async with tab.page.expect_download() as saved:
            await tab.page.get_by_role("button", name="Save JSON").click()
        document = json.loads(await asyncio.to_thread((await (await saved.value).path()).read_bytes))
        assert document["results"][0]["answers"].keys() == {"classify", "detect", "segment"}
        async with tab.page.expect_download() as saved:
            await tab.page.get_by_role("button", name="Save drawing").click()
        drawing = await asyncio.to_thread((await (await saved.value).path()).read_bytes)
        with Image.open(BytesIO(drawing)) as opened:
            assert opened.size == (800, 480)
        assert len([url for url in tab.requests if "tasks=" in url]) == 1
        assert tab.complaints == []
        assert tab.foreign(f"http://127.0.0.1:{rest.port}") == []


async def test_tasks_models_and_code(browser: Browser) -> None:
    """The request is for the chosen tasks alone, with the parameters that differ from their defaults; the code in each
    language names the picture's file and the same parameters, and the command works when it is pasted."""
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.page.locator("#file").set_input_files(REFERENCE_PICTURE)
        await answered(tab, REFERENCE_PICTURE.name)
        for task in ("detect", "segment"):
            await tab.page.locator(f"#task-{task}").uncheck()
        await tab.page.locator("summary", has_text="Parameters").click()
        await tab.page.locator("#top_k").fill("2")
        await tab.page.locator("#top_k").press("Enter")
        await tab.until("document.querySelectorAll('.bars li').length === 2")
        assert tab.requests[-1].endswith("/classify?top_k=2")
        name = REFERENCE_PICTURE.name
        assert f'client.classify("{name}", top_k=2)' in await code(tab, "Python")
        assert f'readFile("{name}")' in await code(tab, "JavaScript")
        assert "ClassifyRequest(image=file.read(), top_k=2)" in await code(tab, "gRPC")
        shell = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", await code(tab, "curl"), cwd=REFERENCE_PICTURE.parent,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await shell.communicate()
        assert len(json.loads(output)["results"][0]["labels"]) == 2
        await tab.page.get_by_role("button", name="Copy").click()
        assert await tab.run("navigator.clipboard.readText()") == await code(tab, "curl")
        await tab.page.locator("#task-detect").check()
        await tab.page.locator("#tiles").check()
        await tab.until("document.getElementById('code-text').textContent.includes('tiles=auto')")
        await answered(tab)
        for task in ("classify", "detect"):
            await tab.page.locator(f"#task-{task}").uncheck()
        await tab.page.locator("#problem-title").get_by_text("No task is chosen").wait_for()
        assert tab.complaints == []


async def test_pictures_come_by_drop_paste_and_camera(browser: Browser, tmp_path: Path) -> None:
    """Several files, pasted and dropped ones and the camera's are pictures like a chosen one; each of several has its
    own answer."""
    give = """([kind, data]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], `${kind}.jpg`, { type: "image/jpeg" }));
        const event = kind === "paste"
          ? new ClipboardEvent("paste", { clipboardData: transfer })
          : new DragEvent("drop", { dataTransfer: transfer });
        document.dispatchEvent(event);
    }"""
    data = base64.b64encode(encoded(PHOTO, "JPEG")).decode()
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        for kind in ("paste", "drop"):
            await tab.page.evaluate(give, [kind, data])
            await answered(tab, f"{kind}.jpg")
        second = tmp_path / "second.png"
        second.write_bytes(encoded(PHOTO, "PNG"))
        await tab.page.locator("#file").set_input_files([REFERENCE_PICTURE, second])
        await answered(tab, REFERENCE_PICTURE.name)
        await tab.page.get_by_role("button", name="second.png").click()
        await answered(tab, "second.png")
        await tab.page.get_by_role("button", name="Use the camera").click()
        await tab.page.get_by_role("button", name="Take a picture").click()
        await answered(tab, "camera.jpg")
        assert tab.complaints == []


@pytest.mark.parametrize("suffix", [".heic", ".tiff"])
async def test_a_format_that_the_browser_does_not_know(browser: Browser, tmp_path: Path, suffix: str) -> None:
    """Of such a file the service's own drawing is shown, beside the answer."""
    file = tmp_path / f"photo{suffix}"
    file.write_bytes(picture("photo") if suffix == ".heic" else encoded(PHOTO, "TIFF"))
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.page.locator("#file").set_input_files(file)
        await answered(tab, file.name)
        await tab.until("document.querySelector('#stage img').naturalWidth > 0")
        assert await tab.page.locator("#canvas").is_hidden()


async def test_the_drawing_follows_the_window(browser: Browser, tmp_path: Path) -> None:
    """The canvas always has the size in which the picture is shown; what is saved has the picture's own size."""
    file = tmp_path / "large.jpg"
    file.write_bytes(encoded(PHOTO.resize((2000, 1200)), "JPEG"))
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.page.locator("#file").set_input_files(file)
        await answered(tab, file.name)
        wide = await canvas_size(tab)
        assert wide == await shown_size(tab)
        await tab.page.set_viewport_size({"width": 640, "height": 600})
        await tab.until(f"document.getElementById('canvas').width < {wide[0]}")
        assert await canvas_size(tab) == await shown_size(tab)
        async with tab.page.expect_download() as saved:
            await tab.page.get_by_role("button", name="Save drawing").click()
        with Image.open(await (await saved.value).path()) as opened:
            assert opened.size == (2000, 1200)


async def test_masks_are_drawn_as_coco_decodes_them(browser: Browser) -> None:
    """In any size each pixel of the screen has the nearest pixel of the mask."""
    script = """(async ({ mask, width, height }) => {
      const { fillMask } = await import("/web/playground/rle.js");
      const pixels = new Uint8Array(width * height);
      fillMask(pixels, width, height, mask, 1);
      return [...pixels];
    })(%s)"""
    random = np.random.default_rng(0)
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        masks = [(37, 53, 0.5), (37, 53, 0.02), (1, 90, 0.5), (90, 1, 0.5), (8, 8, 1.0), (8, 8, 0.0)]
        for height, width, density in masks:
            mask = np.asfortranarray(random.random((height, width)) < density, np.uint8)
            counts = pycocotools.mask.encode(mask)["counts"].decode()
            for rows, columns in [(height, width), (20, 31), (113, 160), (1, 1)]:
                size = {"mask": {"size": [height, width], "counts": counts}, "width": columns, "height": rows}
                drawn = np.array(await tab.run(script % json.dumps(size))).reshape(rows, columns)
                nearest = [((np.arange(n) + 0.5) * of / n).astype(int) for n, of in ((rows, height), (columns, width))]
                assert (drawn == mask[np.ix_(*nearest)]).all()


async def test_errors_are_shown_and_leave_nothing_behind(browser: Browser, tmp_path: Path) -> None:
    """A refused picture, an overloaded service and one that stopped are each shown in words; the previous answer is
    hidden, and the next good one clears the error."""
    async with open_tab(browser) as tab:
        async with open_rest(max_in_flight=1, with_worker=True) as rest:
            await open_playground(tab, rest)
            await tab.page.locator("#file").set_input_files(REFERENCE_PICTURE)
            await answered(tab)
            paper = tmp_path / "paper.txt"
            paper.write_text("not a picture", encoding="ascii")
            await tab.page.locator("#file").set_input_files(paper)
            await tab.page.locator("#problem-detail").get_by_text("JPEG").wait_for()
            for card in ("#answer", "#timings", "#toolbar", "#raw"):
                assert await tab.page.locator(card).is_hidden()
            assert await tab.page.locator("#retry").is_hidden()

            await tab.page.locator("#file").set_input_files(REFERENCE_PICTURE)
            await answered(tab)
            assert await tab.page.locator("#problem").is_hidden()
        await tab.page.locator("#ask").click()
        await tab.page.locator("#problem-title").get_by_text("Cannot reach the service").wait_for()
        await tab.page.locator("#state").get_by_text("cannot reach the service").wait_for()
        assert await tab.page.locator("#answer").is_hidden()
        assert await tab.page.locator("#retry").is_enabled()
        assert [complaint for complaint in tab.complaints if REFUSED not in complaint] == []


async def test_an_overloaded_service_names_a_time_to_try_again(browser: Browser) -> None:
    """While the service refuses for lack of room, the page counts the seconds down that Retry-After names."""
    async with open_rest(max_in_flight=1) as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        before = len(rest.worker.runner.batches)
        rest.worker.runner.unblocked.clear()
        body = REFERENCE_PICTURE.read_bytes()
        held = asyncio.create_task(rest.http.post("/classify", content=body))
        async with asyncio.timeout(PATIENCE_S):
            while len(rest.worker.runner.batches) == before:
                await asyncio.sleep(0.01)
        await tab.page.locator("#file").set_input_files(REFERENCE_PICTURE)
        await tab.page.get_by_role("button", name="Try again in").wait_for()
        rest.worker.runner.unblocked.set()
        assert (await held).status_code == 200
        await tab.page.get_by_role("button", name="Try again", exact=True).click()
        await answered(tab)


async def test_a_service_with_one_task(browser: Browser) -> None:
    """A task without a model cannot be chosen; the others work."""
    async with open_rest(tasks=[Task.CLASSIFY]) as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.until("document.getElementById('task-classify').checked")
        assert await tab.page.locator("#task-detect").is_disabled()
        await tab.page.get_by_role("button", name="A white dog").click()
        await answered(tab, "dog.jpg")
        assert tab.complaints == []


async def test_keys(browser: Browser, tmp_path: Path) -> None:
    """Where keys are required the page asks for one, again after a wrong one and after one that ended, and works; only
    the tab stores it."""
    keys, key, new = tmp_path / "keys", "0123456789abcdef", "fedcba9876543210"
    keys.write_text(f"{key}\n", encoding="ascii")

    async with open_rest(api_keys_file=keys) as rest, open_tab(browser) as tab:

        async def give(text: str) -> None:
            await tab.page.locator("#key").fill(text)
            await tab.page.get_by_role("button", name="Use this key").click()

        await tab.page.goto(f"http://127.0.0.1:{rest.port}/")
        await give("not-this-one-at-all")
        await tab.page.locator("#key-hint").get_by_text("key is wrong").wait_for()
        await give(key)
        await tab.until("document.querySelectorAll('#tasks option').length === 3")
        await tab.page.get_by_role("button", name="A white dog").click()
        await answered(tab)
        assert await tab.page.locator("#key-form").is_hidden()
        assert "Authorization: Bearer $CONVMLP_API_KEY" in await code(tab, "curl")
        compile(grpc_code := await code(tab, "gRPC"), "gRPC", "exec")
        assert 'os.environ["CONVMLP_API_KEY"]' in grpc_code
        assert "import os" in grpc_code
        assert key not in await tab.page.content()
        assert await tab.run("Object.values(sessionStorage).length") == 1
        assert await tab.run("Object.values(localStorage).length") == 0

        keys.write_text(f"{new}\n", encoding="ascii")
        async with asyncio.timeout(PATIENCE_S):
            while (await rest.http.get("/models", headers={"Authorization": f"Bearer {new}"})).status_code != 200:
                await asyncio.sleep(0.05)
        await tab.page.locator("#ask").click()
        await tab.page.locator("#key-form").wait_for()
        assert await tab.page.locator("#answer").is_hidden()
        await give(new)
        await answered(tab)


async def test_live(browser: Browser) -> None:
    """The plots show the requests that were answered meanwhile, from the service's own metrics."""
    async with open_rest() as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.page.get_by_role("tab", name="Live").click()
        await tab.page.locator("#live-problem").get_by_text("Measuring").wait_for()
        for _ in range(3):
            await rest.http.post("/classify", content=REFERENCE_PICTURE.read_bytes())
        await tab.until("/p50 [0-9.]+ ms/.test(document.getElementById('plots').innerText)")
        plots = await tab.page.locator("#plots").inner_text()
        for title in ("Requests per second", "Latency", "Queue", "Mean batch"):
            assert title in plots
        assert tab.complaints == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide-light", "phone-dark"])
async def test_accessibility(browser: Browser, width: int, dark: bool) -> None:
    """axe finds no violation: before and after an answer, with an error, and in the live view; and nothing is wider
    than the window."""
    async with open_rest() as rest, open_tab(browser, width=width, dark=dark) as tab:

        async def check() -> None:
            assert await accessibility_faults(tab) == []
            assert await tab.run("document.documentElement.scrollWidth <= innerWidth")

        await open_playground(tab, rest)
        await tab.until("document.querySelectorAll('#tasks option').length === 3")
        await check()
        await tab.page.get_by_role("button", name="A dog and a cat").click()
        await answered(tab)
        await check()
        await tab.page.locator("#file").set_input_files(
            {"name": "paper.zip", "mimeType": "application/zip", "buffer": _archive()}
        )
        await tab.page.locator("#problem").wait_for()
        await check()
        await tab.page.get_by_role("tab", name="Live").click()
        await tab.page.locator("#plots figure").first.wait_for()
        await check()


def _archive() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("empty", b"")
    return file.getvalue()


async def test_classes_have_the_colours_of_their_model(browser: Browser) -> None:
    """The canvas, the list and the choice of classes have the palette of the chosen model."""
    palette = ((0, 0, 0), (1, 254, 3), (250, 4, 5))
    async with open_rest(more=[coloured(Task.SEGMENT, palette)]) as rest, open_tab(browser) as tab:
        await open_playground(tab, rest)
        await tab.page.locator("#model-segment").select_option("coloured_segment")
        for task in ("classify", "detect"):
            await tab.page.locator(f"#task-{task}").uncheck()
        await tab.page.get_by_role("button", name="A dog and a cat").click()
        await answered(tab, "pair.jpg")
        swatches = "[...document.querySelectorAll('#class-choices .swatch, #answers .swatch')]"
        shown = set(await tab.run(f"{swatches}.map((one) => one.style.getPropertyValue('--colour'))"))
        assert shown <= {"#000000", "#01fe03", "#fa0405"}
        assert shown & {"#01fe03", "#fa0405"}
        assert tab.complaints == []
