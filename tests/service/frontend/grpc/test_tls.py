"""TLS and mTLS with real certificates: who is let in, what renewal does, what is refused at the start."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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

from service.frontend.grpc.tls import CertificateFiles, InvalidCertificates, certificate_files, server_credentials
from service.settings import Settings
from tests.e2e.convmlp_process import started
from tests.service.frontend.grpc_server import health_of, open_rpc, refusal


@dataclass(frozen=True)
class Authority:
    """An authority, and the files of a server that it vouches for."""

    ca: trustme.CA
    folder: Path

    @property
    def files(self) -> CertificateFiles:
        return CertificateFiles(self.folder / "server.pem", self.folder / "server.key", None)

    @property
    def mutual(self) -> CertificateFiles:
        """The same, and callers must have a certificate of this authority's."""
        return CertificateFiles(self.files.certificate, self.files.key, self.folder / "ca.pem")

    def issue(self) -> None:
        """Write a new certificate and its key; each file is replaced at one stroke."""
        issued = self.ca.issue_cert("localhost")
        chain = b"".join(one.bytes() for one in issued.cert_chain_pems)
        _replace(self.files.certificate, chain)
        _replace(self.files.key, issued.private_key_pem.bytes())


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def authority_in(folder: Path) -> Authority:
    folder.mkdir()
    authority = Authority(trustme.CA(), folder)
    authority.ca.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue()
    return authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return authority_in(tmp_path / "one")


@asynccontextmanager
async def secure(
    address: str, trusted: Authority, own: trustme.LeafCert | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A new connection of a caller that trusts an authority and shows its `own` certificate, if any."""
    chain = b"".join(one.bytes() for one in own.cert_chain_pems) if own else None
    credentials = grpc.ssl_channel_credentials(
        trusted.ca.cert_pem.bytes(), own.private_key_pem.bytes() if own else None, chain
    )
    port = address.rpartition(":")[2]
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        yield channel


async def lets_in(address: str, trusted: Authority, own: trustme.LeafCert | None = None) -> bool:
    async with secure(address, trusted, own) as channel:
        code = await health_of(channel).Check(HealthCheckRequest(), timeout=20).code()
    return bool(code is grpc.StatusCode.OK)


async def test_callers_are_served_over_tls_alone(authority: Authority, tmp_path: Path) -> None:
    """Who trusts the server's authority is let in; who trusts another, or speaks plainly, is not."""
    async with open_rpc(credentials=server_credentials(authority.files)) as rpc:
        assert await lets_in(rpc.address, authority)
        assert not await lets_in(rpc.address, authority_in(tmp_path / "other"))
        error = await refusal(rpc.health.Check(HealthCheckRequest(), timeout=20))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_process_serves_over_tls(authority: Authority) -> None:
    """`convmlp grpc` with the two flags; who speaks plainly is hung up on, and the log keeps its format."""
    files = authority.files
    flags = ("--grpc-tls-certificate", str(files.certificate), "--grpc-tls-key", str(files.key))
    ports = ("--grpc-port", "0", "--grpc-metrics-port", "0")
    with started("grpc", "--worker-address", "ipc:///nobody", *ports, *flags) as process:
        listening = process.wait_for("listening")
        assert listening["tls"]
        host, _, port = listening["address"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert b"HTTP" not in plain.recv(100)
        assert await lets_in(listening["address"], authority)
    assert [line for line in process.lines if "role" not in line] == []


async def test_callers_must_show_a_certificate_where_an_authority_is_set(authority: Authority, tmp_path: Path) -> None:
    """One of that authority's; none, or another's, is no good."""
    async with open_rpc(credentials=server_credentials(authority.mutual)) as rpc:
        assert await lets_in(rpc.address, authority, authority.ca.issue_cert("caller"))
        assert not await lets_in(rpc.address, authority)
        assert not await lets_in(rpc.address, authority, authority_in(tmp_path / "other").ca.issue_cert("caller"))


async def test_renewed_certificates_are_taken_up(authority: Authority, tmp_path: Path) -> None:
    """New connections get the new certificate, and callers are held to the new authority; no restart."""
    other = authority_in(tmp_path / "other")
    caller, others_caller = authority.ca.issue_cert("caller"), other.ca.issue_cert("caller")
    async with open_rpc(credentials=server_credentials(authority.mutual)) as rpc:
        assert await lets_in(rpc.address, authority, caller)
        for path in other.folder.iterdir():
            _replace(authority.folder / path.name, path.read_bytes())
        assert await lets_in(rpc.address, other, others_caller)
        assert not await lets_in(rpc.address, authority, others_caller)
        assert not await lets_in(rpc.address, other, caller)


async def test_a_renewal_gone_wrong_leaves_the_last_good_certificate(authority: Authority) -> None:
    """Half a renewal, or a missing file, is no reason to stop serving; the other half mends it."""
    async with open_rpc(credentials=server_credentials(authority.files)) as rpc:
        old, old_key = authority.files.certificate.read_text(), authority.files.key.read_bytes()
        authority.issue()
        new, new_key = authority.files.certificate.read_text(), authority.files.key.read_bytes()
        _replace(authority.files.key, old_key)
        assert old.startswith(await shown(rpc.address))
        authority.files.key.unlink()
        assert old.startswith(await shown(rpc.address))
        assert await lets_in(rpc.address, authority)
        _replace(authority.files.key, new_key)
        assert new.startswith(await shown(rpc.address))
        assert await lets_in(rpc.address, authority)


async def shown(address: str) -> str:
    """The certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    return (await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))).strip()


def encrypted(key: bytes) -> bytes:
    private = load_pem_private_key(key, None)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_files_that_are_not_what_they_should_be_are_refused(authority: Authority, tmp_path: Path) -> None:
    """The message names the file and what was expected, and nobody is asked for a password."""
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


def test_certificate_and_key_come_together() -> None:
    """None of them is no TLS; one of them, or an authority for callers alone, is a mistake that is told."""
    some = Path("some.pem")
    assert certificate_files(Settings()) is None
    assert certificate_files(Settings(grpc_tls_certificate=some, grpc_tls_key=some)) == CertificateFiles(
        some, some, None
    )
    for incomplete in (
        Settings(grpc_tls_certificate=some),
        Settings(grpc_tls_key=some),
        Settings(grpc_tls_client_ca=some),
    ):
        with pytest.raises(InvalidCertificates, match="grpc_tls_key"):
            certificate_files(incomplete)
