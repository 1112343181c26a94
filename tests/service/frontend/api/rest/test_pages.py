from __future__ import annotations

import re

import pytest

from model.reference import REFERENCE_PICTURE
from service.frontend.api.rest.routes import FILES
from tests.service.frontend.rest_server import Rest

SVG = "http://www.w3.org/2000/svg"
"""A name, which nothing is loaded from."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_need_nothing_from_elsewhere(rest: Rest, path: str) -> None:
    """Everything that a page loads comes from this service, has no inline code, and the headers enforce it."""
    page = await rest.http.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert loaded
    for reference in loaded:
        if not reference.startswith("data:"):
            assert (await rest.http.get(f"/{reference.removeprefix('./')}")).status_code == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.text)


async def test_scripts_name_no_other_host(rest: Rest) -> None:
    """Neither our scripts nor the style sheet speak to another host."""
    paths = [path for path in FILES if path.endswith((".js", ".css")) and not path.startswith("/web/vendor/")]
    assert len(paths) > 5
    for path in paths:
        response = await rest.http.get(path)
        assert response.status_code == 200
        assert "://" not in response.text.replace(SVG, "")
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_sample_is_the_reference_picture(rest: Rest) -> None:
    """The photograph among the samples is the picture on which models prove themselves."""
    response = await rest.http.get("/web/samples/tabby.jpg")
    assert response.headers["content-type"] == "image/jpeg"
    assert response.content == REFERENCE_PICTURE.read_bytes()
    assert (await rest.http.post("/classify", content=response.content)).status_code == 200


async def test_no_other_file_is_served(rest: Rest) -> None:
    """Only the known files are there, wherever a path tries to lead."""
    for path in ("/web/", "/web/../app.py", "/web/%2e%2e/rest/app.py", "/web/style.css/"):
        assert (await rest.http.get(path)).status_code == 404
