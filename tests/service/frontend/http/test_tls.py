"""HTTPS and mTLS with real certificates: who may connect, renewal, and bounds on handshakes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from service.errors import ConnectionEnd
from service.frontend.http.handshake import HANDSHAKE_S
from service.process import EXIT_CONFIG
from tests.e2e.convmlp_process import started
from tests.service.cli.convmlp_command import convmlp
from tests.service.frontend.certificates import Authority, authority_in, replace
from tests.service.frontend.rest_server import Rest, open_rest, picture, problem_of
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


def settings_of(authority: Authority, *, mutual: bool = False) -> dict[str, Any]:
    files = authority.mutual if mutual else authority.files
    named = {"certificate": files.certificate, "key": files.key, "client_ca": files.client_ca}
    return {f"http_tls_{name}": path for name, path in named.items() if path is not None}


@asynccontextmanager
async def client(
    rest: Rest, trusted: Authority, own: trustme.LeafCert | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    url = f"https://localhost:{rest.port}"
    async with httpx2.AsyncClient(base_url=url, verify=trusted.client_context(own), timeout=60) as http:
        yield http


async def connects(rest: Rest, trusted: Authority, own: trustme.LeafCert | None = None) -> bool:
    """Whether a new connection of such a client is answered."""
    async with client(rest, trusted, own) as http:
        try:
            return (await http.get("/livez")).status_code == 200
        except httpx2.TransportError:
            return False


async def test_tls_only(authority: Authority, tmp_path: Path) -> None:
    """Clients that trust the server's authority are served, kept connections and long bodies too; others are not."""
    async with open_rest(**settings_of(authority)) as rest:
        async with client(rest, authority) as http:
            for body in (picture(9), picture(9, 1200, 900, "BMP")):
                answer = await http.post("/classify", content=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["results"][0]["labels"][0]["index"] == 9
            metrics = await http.get("/metrics")
            assert "convmlp_connections 1.0" in metrics.text
            assert (await http.request("HEAD", "/")).status_code == 200
        assert not await connects(rest, authority_in(tmp_path / "other"))
        with pytest.raises(httpx2.TransportError):
            await rest.http.get("/livez")


async def test_client_certificates(authority: Authority, tmp_path: Path) -> None:
    """With a client authority, a client needs a certificate of that authority."""
    async with open_rest(**settings_of(authority, mutual=True)) as rest:
        assert await connects(rest, authority, authority.ca.issue_cert("caller"))
        assert not await connects(rest, authority)
        assert not await connects(rest, authority, authority_in(tmp_path / "other").ca.issue_cert("caller"))


async def test_renewed_certificates_are_used(authority: Authority, tmp_path: Path) -> None:
    """New connections get the renewed certificate, and the new client authority applies, without a restart."""
    other = authority_in(tmp_path / "other")
    caller, others_caller = authority.ca.issue_cert("caller"), other.ca.issue_cert("caller")
    async with open_rest(**settings_of(authority, mutual=True)) as rest, client(rest, authority, caller) as before:
        assert (await before.get("/livez")).status_code == 200
        for path in other.folder.iterdir():
            replace(authority.folder / path.name, path.read_bytes())
        assert await connects(rest, other, others_caller)
        assert not await connects(rest, authority, others_caller)
        assert not await connects(rest, other, caller)
        assert (await before.get("/livez")).status_code == 200  # on the connection that it has


async def test_handshakes_are_bounded(authority: Authority) -> None:
    """Connections without a handshake count, give way at the limit, and leave room for who speaks TLS."""
    async with open_rest(max_connections=4, **settings_of(authority)) as rest:
        silent = [await asyncio.open_connection("127.0.0.1", rest.port) for _ in range(4)]
        await asyncio.sleep(1.1)  # what began just now is not closed
        async with client(rest, authority) as http:
            assert (await http.post("/classify", content=picture())).status_code == 200
            metrics = (await http.get("/metrics")).text
            ended = [line for line in metrics.splitlines() if line.startswith("convmlp_connections_ended_total")]
            assert f'convmlp_connections_ended_total{{reason="{ConnectionEnd.LIMIT}"}} 1.0' in ended
        assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()


async def test_a_handshake_does_not_hold_up_the_drain(authority: Authority) -> None:
    """A server that stops does not wait for connections that never speak TLS."""
    async with open_rest(drain_timeout_s=60.0, **settings_of(authority)) as rest:
        _, writer = await asyncio.open_connection("127.0.0.1", rest.port)
        assert await connects(rest, authority)
        rest.stop.set()
        async with asyncio.timeout(0.8 * HANDSHAKE_S):
            await rest.serving
        writer.close()


async def test_a_caller_without_tls_learns_nothing(authority: Authority) -> None:
    """Plain HTTP gets no answer of the application, and costs no other connection."""
    async with open_rest(**settings_of(authority)) as rest:
        reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
        assert await connects(rest, authority)


async def test_refusals_over_tls(authority: Authority) -> None:
    """What is not HTTP gets its problem inside TLS as well."""
    async with open_rest(**settings_of(authority)) as rest:
        reader, writer = await asyncio.open_connection("localhost", rest.port, ssl=authority.client_context())
        writer.write(b"nonsense\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert problem_of(body)["type"] == "/problems/malformed-request"
        writer.close()


async def test_a_caller_that_ends_its_tls_has_left(authority: Authority) -> None:
    """TLS has no half-closed connections here: a caller that ends its own half ends its request and the connection."""

    def send() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", rest.port), timeout=60)
        secure = authority.client_context().wrap_socket(plain, server_hostname="localhost")
        body = picture()
        secure.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return secure

    async def in_progress(http: httpx2.AsyncClient, images: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while f"convmlp_in_flight_requests {images}.0" not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.01)

    async with open_rest(**settings_of(authority)) as rest, client(rest, authority) as http:
        rest.worker.runner.unblocked.clear()
        secure = await asyncio.to_thread(send)
        await in_progress(http, 1)
        with await asyncio.to_thread(secure.unwrap) as plain:  # waits for the server's own end of TLS
            assert await asyncio.to_thread(plain.recv, 1) == b""
        await in_progress(http, 0)


async def test_the_process_serves_https_and_is_checked(authority: Authority) -> None:
    """`convmlp rest` with the two flags serves HTTPS, and `convmlp health` with the same flags finds it alive."""
    files = authority.files
    flags = ("--http-tls-certificate", str(files.certificate), "--http-tls-key", str(files.key))
    worker = ("--worker-address", "ipc:///nobody")
    with started("rest", *worker, "--http-port", "0", *flags) as process:
        url = (await asyncio.to_thread(process.wait_for, "listening"))["url"]
        assert url.startswith("https://")
        port = url.rpartition(":")[2]
        health = await convmlp("health", "--live", "rest", "--http-port", port, *flags)
        assert health.status == 0, health.err
        ready = await convmlp("health", "rest", "--http-port", port, *flags)
        assert (ready.status, "no worker" in ready.err.lower()) == (1, True), ready.err
        plain = await convmlp("health", "--live", "rest", "--http-port", port)
        assert plain.status == 1
    assert [line for line in process.lines if "role" not in line] == []


async def test_invalid_certificates_end_the_process(tmp_path: Path) -> None:
    """A missing file is a wrong configuration, named in one line."""
    missing = str(tmp_path / "missing.pem")
    flags = ("--http-tls-certificate", missing, "--http-tls-key", missing)
    for command in (
        ("rest", "--worker-address", "ipc:///nobody"),
        ("serve", "--grpc-port", "0", "--worker-metrics-port", "0"),
    ):
        ran = await convmlp(*command, "--http-port", "0", *flags)
        assert ran.status == EXIT_CONFIG
        assert missing in ran.err
        assert "Traceback" not in ran.err
