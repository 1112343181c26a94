"""The pages for people: the playground at `/`, the reference at `/docs`. Nothing comes from another host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from model.reference import REFERENCE_PICTURE

WEB = Path(__file__).parents[1] / "web"

FILES = {
    "/": WEB / "playground.html",
    "/docs": WEB / "docs.html",
    "/web/playground.js": WEB / "playground.js",
    "/web/docs.js": WEB / "docs.js",
    "/web/style.css": WEB / "style.css",
    "/web/sample.jpg": REFERENCE_PICTURE,
}
HEADERS = {
    # Pictures that a person picked are shown from blob: URLs, the icon from a data: URL.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def pages() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    for path, file in FILES.items():
        router.add_api_route(path, _page(file), methods=["GET", "HEAD"])
    return router


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, headers=HEADERS)

    return page
