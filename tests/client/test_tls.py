"""TLS and mutual TLS over both transports."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme

from convmlp_client import AsyncClient, Client, ConnectionFailed
from tests.client.fault_servers import cat_reply, parse_request, response


class Certificates:
    """A certificate authority, and PEM files of its certificates."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.server = self.authority.issue_cert("localhost")
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        caller = self.authority.issue_cert("caller.test")
        self.client_certificate = folder / "caller.pem", folder / "caller.key"
        caller.cert_chain_pems[0].write_to_path(self.client_certificate[0])
        caller.private_key_pem.write_to_path(self.client_certificate[1])

    @asynccontextmanager
    async def https(self) -> AsyncIterator[str]:
        """The URL of an HTTPS server that requires client certificates and serves one request per connection."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b"picture") if head.startswith(b"POST") else 0)
            writer.write(response(headers=("connection: close",)))
            await writer.drain()
            writer.close()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.configure_cert(context)
        self.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        async with await asyncio.start_server(serve, "localhost", 0, ssl=context) as listener:
            yield f"https://localhost:{listener.sockets[0].getsockname()[1]}"

    @asynccontextmanager
    async def grpcs(self) -> AsyncIterator[str]:
        """The URL of a gRPC server that requires client certificates."""

        async def answer(message: bytes, _: object) -> bytes:
            return cat_reply(parse_request(message).id)

        class Handler(grpc.GenericRpcHandler):
            def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
                return grpc.unary_unary_rpc_method_handler(answer)

        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handler(),))
        pair = self.server.private_key_pem.bytes(), self.server.cert_chain_pems[0].bytes()
        credentials = grpc.ssl_server_credentials([pair], self.authority.cert_pem.bytes(), require_client_auth=True)
        port = server.add_secure_port("localhost:0", credentials)
        await server.start()
        try:
            yield f"grpcs://localhost:{port}"
        finally:
            await server.stop(grace=None)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_mutual_tls(certificates: Certificates, scheme: str) -> None:
    """With the authority and a client certificate a request succeeds. Without either the connection fails."""
    both: dict[str, Any] = {
        "ca_file": certificates.ca_file,
        "client_certificate": certificates.client_certificate,
    }
    async with getattr(certificates, scheme)() as url:
        async with AsyncClient(url, **both) as client:
            assert (await client.classify(b"picture")).labels[0].label == "cat"
        for missing in both:
            async with AsyncClient(url, **{**both, missing: None}, retries=0) as client:
                with pytest.raises(ConnectionFailed):
                    await client.classify(b"picture")


@pytest.mark.parametrize("url", ["https://localhost", "grpcs://localhost"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_unreadable_certificates_raise_in_the_constructor(kind: Any, url: str, tmp_path: Path) -> None:  # noqa: ANN401
    """A certificate file that cannot be read raises when the client is made."""
    with pytest.raises(FileNotFoundError):
        kind(url, ca_file=tmp_path / "ca.pem")
    with pytest.raises(FileNotFoundError):
        kind(url, client_certificate=(tmp_path / "caller.pem", tmp_path / "caller.key"))
