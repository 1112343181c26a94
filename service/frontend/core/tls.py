"""TLS of the front-ends: certificates from files, for every transport."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.settings import Settings

Transport = Literal["http", "grpc"]
TRANSPORTS: tuple[Transport, ...] = ("http", "grpc")
"""As they begin the names of their settings."""


class InvalidCertificates(Exception):
    """A certificate or key file is missing, unreadable or malformed."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files: the server's certificate chain, leaf first; its key; the authorities of clients' certificates, if
    clients must have one."""

    certificate: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


def certificate_files(settings: Settings, transport: Transport) -> CertificateFiles | None:
    """The files of one transport in the settings; None without TLS.

    Raises:
        InvalidCertificates: one is set without another that it needs.
    """
    prefix = f"{transport}_tls"
    values: list[Path | None] = [getattr(settings, f"{prefix}_{name}") for name in ("certificate", "key", "client_ca")]
    certificate, key, client_ca = values
    if certificate is None and key is None:
        if client_ca is not None:
            raise InvalidCertificates(f"{prefix}_client_ca needs {prefix}_certificate and {prefix}_key as well")
        return None
    if certificate is None or key is None:
        raise InvalidCertificates(f"set both {prefix}_certificate and {prefix}_key, or neither")
    return CertificateFiles(certificate, key, client_ca)


def server_context(files: CertificateFiles) -> ssl.SSLContext:
    """The files as a server's context, which checks them.

    Raises:
        InvalidCertificates: a file is missing or malformed, or certificate and key are no pair.
    """
    for path in files.paths:
        try:
            path.read_bytes()
        except OSError as error:
            raise InvalidCertificates(f"{path}: {error.strerror}; expected a PEM file") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would prompt for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise InvalidCertificates(
            f"{files.certificate}, {files.key}: {_reason(error)}; expected a PEM certificate chain and its PEM key "
            "without a password"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise InvalidCertificates(
                f"{files.client_ca}: {_reason(error)}; expected the PEM certificates of authorities"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not be checked against authorities that have changed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def own_client_context(files: CertificateFiles) -> ssl.SSLContext:
    """For checks of the server by its own operator: the server's own certificate is the trusted one.

    With a client authority it is also this client's. Its name is not compared: it is rarely for the address that is
    called. Raises OSError: a file is missing or malformed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(files.certificate)
    if files.client_ca is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)
