"""The first answer of the page at / in Chromium, compared with the API's for the same request, interleaved.

    python -m benchmarks.page [--megapixels 0.14,2,12] [--rounds 9] [FLAGS OF convmlp serve]

`page`: from the choice of a file in a page that was just opened until its answer is drawn, the time of the request is
shown, and the browser paints. `API`: the page's own request, sent by http.client. Each is the median over the rounds,
with the quartiles; `ratio` is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.analyze import connection_to, scaled_picture
from tests.browser.chromium import Tab, open_browser, open_tab
from tests.e2e.convmlp_process import RunningService, running_service

WATCH = """(() => {
  const timings = document.getElementById("timings");
  let began, drawn;
  globalThis.drawnMs = new Promise((resolve) => { drawn = resolve; });
  document.getElementById("file").addEventListener("change", () => { began = performance.now(); }, { capture: true });
  new MutationObserver(() => {
    if (began === undefined || timings.hidden) return;
    requestAnimationFrame(() => setTimeout(() => drawn(performance.now() - began)));
  }).observe(timings, { attributes: true });
})()"""
"""Milliseconds from the event of the chosen file until the frame after the answer was painted, as a promise: to ask for
them again and again would take CPU time from both."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", default="0.14,2,12", help="sizes of the JPEG (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    arguments, flags = parser.parse_known_args()
    sizes = [float(text) for text in arguments.megapixels.split(",")]
    with running_service(*flags) as service, tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(service, sizes, arguments.rounds, Path(folder) / "picture.jpg"))


async def compare(service: RunningService, sizes: Sequence[float], rounds: int, file: Path) -> None:
    print("| megapixels | page, ms | API, ms | ratio |\n|---|---|---|---|")
    for megapixels in sizes:
        picture = scaled_picture(megapixels)
        pages, apis = [], []
        await asyncio.to_thread(file.write_bytes, picture)
        async with open_browser() as browser, open_tab(browser) as tab:
            for number in range(rounds + 1):
                page_ms, path = await page_answer(tab, service, file)
                api_ms = api_answer(service, path, picture)
                if number:  # the first round warms the service up for this size
                    pages.append(page_ms)
                    apis.append(api_ms)
        ratio = statistics.median(page / api for page, api in zip(pages, apis, strict=True))
        print(f"| {megapixels:g} | {in_words(pages)} | {in_words(apis)} | {ratio:.2f} |", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f}")


async def page_answer(tab: Tab, service: RunningService, file: Path) -> tuple[float, str]:
    """Milliseconds until the answer is drawn, and the path that the page asked."""
    await tab.page.goto(f"{service.url}/")
    await tab.page.locator("#state").get_by_text("ready", exact=True).wait_for()
    await tab.page.locator("#task-segment:checked").wait_for()
    await tab.run(WATCH)
    tab.requests.clear()
    await tab.page.locator("#file").set_input_files(file)
    drawn_ms = float(await tab.run("drawnMs"))
    (url,) = (url for url in tab.requests if "/analyze" in url)
    return drawn_ms, url.removeprefix(service.url)


def api_answer(service: RunningService, path: str, body: bytes) -> float:
    """Milliseconds of the same request."""
    with connection_to(service.url) as connection:
        began_s = time.monotonic()
        connection.request("POST", path, body, {"Accept": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        elapsed_ms = (time.monotonic() - began_s) * 1000
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {answer[:200]!r}")
    return elapsed_ms


def in_words(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
