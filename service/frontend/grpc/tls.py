"""TLS of the gRPC front-end: certificates from files, taken up anew when the files change."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from service.frontend.core.auth import FileVersion, file_version
from service.settings import Settings

log = structlog.get_logger(__name__)


class InvalidCertificates(Exception):
    """A file of a certificate or key is missing, unreadable, or not what it should be."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files: the server's chain, leaf first; its key; and whom callers' certificates must come from, if at all."""

    certificate: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


def certificate_files(settings: Settings) -> CertificateFiles | None:
    """The files that the settings name; None where there is to be no TLS.

    Raises:
        CertificatesUnusable: one is named without the other that it needs.
    """
    certificate, key = settings.grpc_tls_certificate, settings.grpc_tls_key
    if certificate is None and key is None:
        if settings.grpc_tls_client_ca is not None:
            raise InvalidCertificates("grpc_tls_client_ca needs grpc_tls_certificate and grpc_tls_key as well")
        return None
    if certificate is None or key is None:
        raise InvalidCertificates("grpc_tls_certificate and grpc_tls_key need each other; one of them is not set")
    return CertificateFiles(certificate, key, settings.grpc_tls_client_ca)


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """What a port is opened with. Before each handshake the files are looked at: a renewed certificate needs no
    restart, and one that cannot be used is logged, and the last good one stays.

    Raises:
        CertificatesUnusable: the files cannot be used now.
    """
    certificates = _Certificates(files)
    return grpc.dynamic_ssl_server_credentials(
        certificates.read(),
        certificates.read_if_changed,  # type: ignore[arg-type]  # grpcio's documentation lets it return None
        require_client_authentication=files.client_ca is not None,
    )


class _Certificates:
    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._stamps: list[FileVersion] = []
        self._lock = threading.Lock()  # handshakes happen in gRPC's own threads

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises CertificatesUnusable."""
        self._stamps = self._stamps_now()
        chain, key, *client_ca = (_read(path) for path in self._files.paths)
        _check(self._files)
        return grpc.ssl_server_certificate_configuration([(key, chain)], *client_ca)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None where the last ones are still right."""
        with self._lock:
            if self._stamps_now() == self._stamps:
                return None
            try:
                configuration = self.read()
            except InvalidCertificates as error:
                log.error("the TLS certificates stay as they were", error=str(error))
                return None
            log.info("the TLS certificates were read again")
            return configuration

    def _stamps_now(self) -> list[FileVersion]:
        return [file_version(path) for path in self._files.paths]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidCertificates(f"{path}: {error.strerror}; expected a PEM file") from None


def _check(files: CertificateFiles) -> None:
    """gRPC itself would take anything, and fail in each handshake without a word."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password given here OpenSSL would ask for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidCertificates(
            f"{files.certificate}, {files.key}: {_reason(error)}; expected a PEM certificate chain and its PEM key "
            "without a password"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise InvalidCertificates(
                f"{files.client_ca}: {_reason(error)}; expected the PEM certificates of authorities"
            ) from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)
