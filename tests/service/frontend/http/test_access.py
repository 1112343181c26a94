"""Callers behind proxies, pages of other origins, and paths that are protected by choice."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.frontend.http.middleware import PROBES
from service.settings import Settings
from tests.service.frontend.rest_server import Rest, open_rest, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "https://app.example.org"
KEY = "0123456789abcdef"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.settings(trusted_proxies="127.0.0.0/8", rate_limit_per_s=0.02, rate_limit_burst=1)
async def test_rates_are_of_callers_behind_a_proxy(fresh_rest: Rest) -> None:
    """Behind a trusted proxy each caller has a rate of its own, and cannot get another by forging the header."""

    async def status(*addresses: str) -> int:
        headers = [("X-Forwarded-For", address) for address in addresses]
        return (await fresh_rest.http.post("/classify", content=picture(), headers=headers)).status_code

    assert await status("203.0.113.1") == 200
    assert await status("203.0.113.1") == 429
    assert await status("203.0.113.2") == 200
    assert await status("203.0.113.9", "203.0.113.2") == 429
    assert await status("203.0.113.9, 203.0.113.1") == 429
    assert await status() == 200


@pytest.mark.settings(rate_limit_per_s=0.02, rate_limit_burst=1)
async def test_without_trusted_proxies_the_header_is_ignored(fresh_rest: Rest) -> None:
    """By default nobody gets another rate by a header."""
    for status, address in ((200, "203.0.113.1"), (429, "203.0.113.2")):
        headers = {"X-Forwarded-For": address, "Forwarded": f"for={address}"}
        answer = await fresh_rest.http.post("/classify", content=picture(), headers=headers)
        assert answer.status_code == status


async def test_pages_of_other_origins_are_refused_by_default(rest: Rest) -> None:
    """Without the setting no answer has a header of CORS, so browsers keep it from other origins' pages."""
    answer = await rest.http.post("/classify", content=picture(), headers={"Origin": PAGE})
    assert answer.status_code == 200
    preflight = await rest.http.options("/classify", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
    assert not [name for name in (*answer.headers, *preflight.headers) if name.startswith("access-control")]


@pytest.mark.settings(cors_origins=f"{PAGE},http://localhost:3000")
async def test_pages_of_listed_origins_may_call(fresh_rest: Rest) -> None:
    """Predictions, errors and preflights name the origin and the readable headers; other origins are not named."""
    http = fresh_rest.http
    for content, status in ((picture(), 200), (b"", 400)):
        answer = await http.post("/classify", content=content, headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = await http.options("/classify", headers={"Origin": PAGE, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    other = {"Origin": "https://other.example.org"}
    assert "access-control-allow-origin" not in (await http.get("/livez", headers=other)).headers
    assert (await http.options("/classify", headers={**other, **asked})).status_code == 400


@pytest.mark.settings(cors_origins="*")
async def test_any_origin(fresh_rest: Rest) -> None:
    """`*` lets any page call, without the browser's own credentials."""
    answer = await fresh_rest.http.get("/models", headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "https://*.example.org", "null"])
async def test_an_origin_is_scheme_and_host(origin: str) -> None:
    """What no browser would send as an origin is a wrong setting."""
    with pytest.raises(ValidationError):
        Settings(cors_origins=origin)


async def test_paths_are_protected_by_choice(tmp_path: Path) -> None:
    """Protected paths need a key, the others of the open ones do not, and probes never do."""
    keys = tmp_path / "keys"
    keys.write_text(f"prometheus {KEY}\n", encoding="ascii")
    async with open_rest(api_keys_file=keys, protected_paths="/metrics,/docs,/openapi.json") as rest:
        for path in ("/metrics", "/docs", "/openapi.json"):
            for headers, status in (({}, 401), (WITH_KEY, 200)):
                assert (await rest.http.get(path, headers=headers)).status_code == status, path
                assert (await rest.http.request("HEAD", path, headers=headers)).status_code == status, path
        for path in (*PROBES - {"/metrics"}, "/", "/web/docs.js"):
            assert (await rest.http.get(path)).status_code == 200, path
        document = (await rest.http.get("/openapi.json", headers=WITH_KEY)).json()
        assert document["paths"]["/metrics"]["get"]["security"]
        assert not document["paths"]["/livez"]["get"].get("security")


async def test_protection_needs_keys_and_known_paths(tmp_path: Path) -> None:
    """Without keys nobody could read a protected path; a probe or a misspelt path cannot be protected."""
    with pytest.raises(ValidationError, match="api_keys_file"):
        Settings(protected_paths="/metrics")
    for path in ("/livez", "/metrics/", "metrics"):
        with pytest.raises(ValidationError):
            Settings(protected_paths=path, api_keys_file=tmp_path / "keys")
