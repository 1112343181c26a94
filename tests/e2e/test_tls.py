"""`convmlp serve` with TLS on both ports: it becomes ready, answers, and its command line reaches it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import running_service
from tests.service.cli.convmlp_command import convmlp
from tests.service.frontend.certificates import authority_in


async def test_the_whole_service_over_tls(tmp_path: Path) -> None:
    """The supervisor finds REST ready through TLS, and a caller that trusts the authority is answered."""
    authority = authority_in(tmp_path / "authority")
    files = authority.files
    flags = [
        f"--{transport}-tls-{name}={path}"
        for transport in ("http", "grpc")
        for name, path in (("certificate", files.certificate), ("key", files.key))
    ]
    with running_service("--models", "convmlp_pets_breed", *flags) as service:
        assert service.url.startswith("https://")
        port = service.url.rpartition(":")[2]
        async with httpx2.AsyncClient(verify=authority.client_context(), timeout=60) as http:
            answer = await http.post(f"https://localhost:{port}/classify", content=REFERENCE_PICTURE.read_bytes())
        assert answer.status_code == 200
        health = await convmlp("health", "serve", "--http-port", port, *flags)
        assert health.status == 0, health.err
        trusted = {"SSL_CERT_FILE": str(authority.folder / "ca.pem")}
        url = ("--url", f"https://localhost:{port}")
        ran = await convmlp("classify", *url, "--json", str(REFERENCE_PICTURE), environment=trusted)
        assert ran.status == 0, ran.err
        assert json.loads(ran.out)["results"][0]["labels"] == answer.json()["results"][0]["labels"]
