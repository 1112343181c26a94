"""TLS of the gRPC front-end: certificates from files, reloaded when the files change."""

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


def certificate_files(settings: Settings) -> CertificateFiles | None:
    """The files in the settings; None without TLS.

    Raises:
        InvalidCertificates: one is set without another that it needs.
    """
    certificate, key = settings.grpc_tls_certificate, settings.grpc_tls_key
    if certificate is None and key is None:
        if settings.grpc_tls_client_ca is not None:
            raise InvalidCertificates("grpc_tls_client_ca needs grpc_tls_certificate and grpc_tls_key as well")
        return None
    if certificate is None or key is None:
        raise InvalidCertificates("set both grpc_tls_certificate and grpc_tls_key, or neither")
    return CertificateFiles(certificate, key, settings.grpc_tls_client_ca)


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials for a port. The files are checked for changes before each handshake, so a renewed certificate needs
    no restart; invalid files are logged, and the last valid ones stay in use.

    Raises:
        InvalidCertificates: the files are invalid now.
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
        self._versions: list[FileVersion] = []
        self._lock = threading.Lock()  # handshakes run in gRPC's threads

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises InvalidCertificates."""
        self._versions = self._current_versions()
        chain, key, *client_ca = (_read(path) for path in self._files.paths)
        _check(self._files)
        return grpc.ssl_server_certificate_configuration([(key, chain)], *client_ca)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None where the files are unchanged or invalid."""
        with self._lock:
            if self._current_versions() == self._versions:
                return None
            try:
                configuration = self.read()
            except InvalidCertificates as error:
                log.error("TLS certificates not reloaded", error=str(error))
                return None
            log.info("TLS certificates reloaded")
            return configuration

    def _current_versions(self) -> list[FileVersion]:
        return [file_version(path) for path in self._files.paths]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidCertificates(f"{path}: {error.strerror}; expected a PEM file") from None


def _check(files: CertificateFiles) -> None:
    """gRPC itself accepts any bytes, and then fails silently in each handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would prompt for one on the terminal.
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
