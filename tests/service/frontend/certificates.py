"""Authorities and real certificates, in files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

from service.frontend.core.tls import CertificateFiles


@dataclass(frozen=True)
class Authority:
    """An authority, and the files of a server with its certificate."""

    ca: trustme.CA
    folder: Path

    @property
    def files(self) -> CertificateFiles:
        return CertificateFiles(self.folder / "server.pem", self.folder / "server.key", None)

    @property
    def mutual(self) -> CertificateFiles:
        """The same, and clients need a certificate of this authority."""
        return CertificateFiles(self.files.certificate, self.files.key, self.folder / "ca.pem")

    def issue(self) -> None:
        """Write a new certificate and its key; each file is replaced atomically."""
        issued = self.ca.issue_cert("localhost")
        chain = b"".join(one.bytes() for one in issued.cert_chain_pems)
        replace(self.files.certificate, chain)
        replace(self.files.key, issued.private_key_pem.bytes())

    def client_context(self, own: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Of a client that trusts this authority and presents its `own` certificate, if any."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if own is not None:
            own.configure_cert(context)
        return context


def replace(path: Path, data: bytes) -> None:
    """Write a file at once, as renewals do."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def authority_in(folder: Path) -> Authority:
    folder.mkdir()
    authority = Authority(trustme.CA(), folder)
    authority.ca.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue()
    return authority
