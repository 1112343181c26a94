"""TLS of the gRPC front-end."""

from __future__ import annotations

import grpc

from service.frontend.core.renewal import Reloaded
from service.frontend.core.tls import CertificateFiles, InvalidCertificates, server_context


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials for one listener. The files are checked for changes before each handshake, so a renewed certificate
    needs no restart; invalid files are logged, and the last valid ones stay in use.

    Raises:
        InvalidCertificates: the files are invalid now.
    """
    certificates = Reloaded(files, _configuration)
    return grpc.dynamic_ssl_server_credentials(
        certificates.get(),
        certificates.get_if_changed,  # type: ignore[arg-type]  # grpcio's documentation lets it return None
        require_client_authentication=files.client_ca is not None,
    )


def _configuration(files: CertificateFiles) -> grpc.ServerCertificateConfiguration:
    """Raises InvalidCertificates."""
    try:
        chain, key, *client_ca = (path.read_bytes() for path in files.paths)
    except OSError as error:
        raise InvalidCertificates(f"{error.filename}: {error.strerror}; expected a PEM file") from None
    server_context(files)  # gRPC itself accepts any bytes, and then fails silently in each handshake
    return grpc.ssl_server_certificate_configuration([(key, chain)], *client_ca)
