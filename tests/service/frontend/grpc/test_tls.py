"""TLS and mTLS with real certificates: who may connect, renewal, and invalid files."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1.health_pb2 import HealthCheckRequest

from service.frontend.core.tls import CertificateFiles, InvalidCertificates
from service.frontend.grpc.tls import server_credentials
from tests.e2e.convmlp_process import started
from tests.service.frontend.certificates import Authority, authority_in, replace
from tests.service.frontend.grpc_server import health_of, open_rpc, refusal
from tests.waiting import PATIENCE_S


@asynccontextmanager
async def secure(
    address: str, trusted: Authority, own: trustme.LeafCert | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A new connection of a client that trusts an authority and presents its `own` certificate, if any."""
    chain = b"".join(one.bytes() for one in own.cert_chain_pems) if own else None
    credentials = grpc.ssl_channel_credentials(
        trusted.ca.cert_pem.bytes(), own.private_key_pem.bytes() if own else None, chain
    )
    port = address.rpartition(":")[2]
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        yield channel


async def connects(address: str, trusted: Authority, own: trustme.LeafCert | None = None) -> bool:
    async with secure(address, trusted, own) as channel:
        code = await health_of(channel).Check(HealthCheckRequest(), timeout=PATIENCE_S).code()
    return bool(code is grpc.StatusCode.OK)


async def test_tls_only(authority: Authority, tmp_path: Path) -> None:
    """Clients that trust the server's authority connect; clients that trust another, or use no TLS, do not."""
    async with open_rpc(files=authority.files) as rpc:
        assert await connects(rpc.address, authority)
        assert not await connects(rpc.address, authority_in(tmp_path / "other"))
        error = await refusal(rpc.health.Check(HealthCheckRequest(), timeout=PATIENCE_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_process_serves_over_tls(authority: Authority) -> None:
    """`convmlp grpc` with the two flags serves TLS only, and its log keeps its format."""
    files = authority.files
    flags = ("--grpc-tls-certificate", str(files.certificate), "--grpc-tls-key", str(files.key))
    ports = ("--grpc-port", "0", "--grpc-metrics-port", "0")
    with started("grpc", "--worker-address", "ipc:///nobody", *ports, *flags, fresh=True) as process:
        listening = process.wait_for("listening")
        assert listening["tls"]
        host, _, port = listening["address"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert b"HTTP" not in plain.recv(100)
        assert await connects(listening["address"], authority)
    assert [line for line in process.lines if "role" not in line] == []


async def test_client_certificates(authority: Authority, tmp_path: Path) -> None:
    """With a client authority, a client needs a certificate of that authority."""
    async with open_rpc(files=authority.mutual) as rpc:
        assert await connects(rpc.address, authority, authority.ca.issue_cert("caller"))
        assert not await connects(rpc.address, authority)
        assert not await connects(rpc.address, authority, authority_in(tmp_path / "other").ca.issue_cert("caller"))


async def test_renewed_certificates_are_used(authority: Authority, tmp_path: Path) -> None:
    """New connections get the renewed certificate, and the new client authority applies, without a restart."""
    other = authority_in(tmp_path / "other")
    caller, others_caller = authority.ca.issue_cert("caller"), other.ca.issue_cert("caller")
    async with open_rpc(files=authority.mutual) as rpc:
        assert await connects(rpc.address, authority, caller)
        for path in other.folder.iterdir():
            replace(authority.folder / path.name, path.read_bytes())
        assert await connects(rpc.address, other, others_caller)
        assert not await connects(rpc.address, authority, others_caller)
        assert not await connects(rpc.address, other, caller)


async def test_a_failed_renewal_leaves_the_last_valid_certificate(authority: Authority) -> None:
    """An incomplete renewal or a missing file leaves the last valid certificate in use until it is complete."""
    async with open_rpc(files=authority.files) as rpc:
        old, old_key = authority.files.certificate.read_text(), authority.files.key.read_bytes()
        authority.issue()
        new, new_key = authority.files.certificate.read_text(), authority.files.key.read_bytes()
        replace(authority.files.key, old_key)
        assert old.startswith(await shown(rpc.address))
        authority.files.key.unlink()
        assert old.startswith(await shown(rpc.address))
        assert await connects(rpc.address, authority)
        replace(authority.files.key, new_key)
        assert new.startswith(await shown(rpc.address))
        assert await connects(rpc.address, authority)


async def shown(address: str) -> str:
    """The certificate that a new connection receives."""
    host, _, port = address.rpartition(":")
    return (await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))).strip()


def encrypted(key: bytes) -> bytes:
    private = load_pem_private_key(key, None)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_invalid_files_are_refused(authority: Authority, tmp_path: Path) -> None:
    """The error names the file and the expected content, and no password prompt appears."""
    other = authority_in(tmp_path / "other")
    certificate, key, client_ca = authority.mutual.paths
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate at all")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(encrypted(key.read_bytes()))
    missing = tmp_path / "missing.pem"
    for files, culprit in [
        (CertificateFiles(missing, key, None), missing),
        (CertificateFiles(certificate, tmp_path, None), tmp_path),
        (CertificateFiles(broken, key, None), broken),
        (CertificateFiles(certificate, broken, None), broken),
        (CertificateFiles(certificate, other.files.key, None), other.files.key),
        (CertificateFiles(certificate, locked, None), locked),
        (CertificateFiles(certificate, key, broken), broken),
        (CertificateFiles(certificate, key, missing), missing),
    ]:
        with pytest.raises(InvalidCertificates, match=f"{culprit}.*: .*; expected") as refused:
            server_credentials(files)
        assert "PEM" in str(refused.value)
    server_credentials(CertificateFiles(certificate, key, client_ca))
