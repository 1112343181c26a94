"""Lighthouse, from npm, against the pages of a real front-end."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from tests.browser.chromium import CHROMIUM
from tests.clients.installs import TIMEOUT_S, node_modules, only_if_asked_for, tool
from tests.service.frontend.rest_server import open_rest

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    only_if_asked_for,
    pytest.mark.timeout(2 * TIMEOUT_S),
]

CATEGORIES = ("accessibility", "best-practices")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage"
NOT_HERE = {"is-on-https", "redirects-http", "valid-source-maps"}
"""Audits of the deployment, not of the page: the tests' front-end has no certificate. And Swagger UI comes without its
source map, of several megabytes."""


async def report_of(url: str, form: str) -> dict[str, Any]:
    """Lighthouse's report of a page, on a `mobile` or a `desktop` screen."""
    program = node_modules("lighthouse") / "node_modules/lighthouse/cli/index.js"
    screen = ["--preset=desktop"] if form == "desktop" else []
    process = await asyncio.create_subprocess_exec(
        tool("node"),
        str(program),
        url,
        *screen,
        "--quiet",
        "--output=json",
        f"--only-categories={','.join(CATEGORIES)}",
        f"--chrome-flags={FLAGS}",
        env={**os.environ, "CHROME_PATH": str(CHROMIUM)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 0, err.decode()
    return dict(json.loads(out))


@pytest.mark.parametrize("form", ["mobile", "desktop"])
@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_lighthouse_finds_nothing(path: str, form: str) -> None:
    """No audit of accessibility or of good practice fails."""
    async with open_rest() as rest:
        report = await report_of(f"http://127.0.0.1:{rest.port}{path}", form)
    assert "runtimeError" not in report
    audits = {name: audit for name, audit in report["audits"].items() if name not in NOT_HERE}
    assert sum(audit["score"] == 1 for audit in audits.values()) > 20
    failed = {
        name: [item.get("node", {}).get("snippet", item) for item in audit.get("details", {}).get("items", [])]
        for name, audit in audits.items()
        if audit["score"] is not None and audit["score"] < 1
    }
    assert failed == {}
