"""What `convmlp doctor` checks of certificates, API keys and the wire's keys."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.cli.checks import Check, State
from service.frontend.core.tls import (
    CertificateFiles,
    InvalidCertificates,
    Transport,
    certificate_files,
    own_client_context,
    server_context,
)
from service.settings import Settings

DAY_S = 86_400
FEW_DAYS = 21
MAX_ROUNDS = 10
"""Of a handshake, which takes three."""


def check_certificates(settings: Settings, transport: Transport) -> Iterator[Check]:
    """The files, as the server reads them, and what a client finds in the certificate. Nothing where TLS is off."""
    name = f"{transport} TLS"
    try:
        files = certificate_files(settings, transport)
        if files is None:
            return
        context = server_context(files)
    except InvalidCertificates as error:
        yield Check(name, State.PROBLEM, str(error))
        return
    context.verify_mode = ssl.CERT_NONE
    try:
        certificate = _shake_hands(context, own_client_context(files))
    except (OSError, InvalidCertificates) as error:
        reason = getattr(error, "verify_message", "") or str(error)
        yield Check(name, State.PROBLEM, f"{files.certificate}: no client accepts it: {reason}; renew it")
        return
    yield _of_certificate(name, files, certificate)
    if files.client_ca is not None:
        yield _of_client_authority(name, files)


def check_key_files(settings: Settings) -> Iterator[Check]:
    """The files of API keys and of the wire's keys, where there are any."""
    from service.frontend.core.auth import ApiKeys, InvalidKeysFile
    from service.wire.curve import InsecureWire, front_end_wire

    if settings.api_keys_file is not None:
        try:
            ApiKeys(settings.api_keys_file)
        except InvalidKeysFile as error:
            yield Check("API keys", State.PROBLEM, str(error))
        else:
            yield _private("API keys", settings.api_keys_file)
    try:
        front_end_wire(settings)
    except InsecureWire as error:
        yield Check("wire key", State.PROBLEM, str(error))
    else:
        if settings.wire_key_file is not None:
            yield _private("wire key", settings.wire_key_file)


def _of_certificate(name: str, files: CertificateFiles, certificate: dict[str, Any]) -> Check:
    names = [value for _, value in certificate.get("subjectAltName", ())]
    if not names:
        return Check(name, State.PROBLEM, f"{files.certificate}: has no subjectAltName, so no client accepts it")
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / DAY_S
    found = f"{files.certificate}, for {', '.join(names)}, until {certificate['notAfter']}"
    if days < FEW_DAYS:
        return Check(name, State.NOTE, f"{found}: {days:.0f} days; renew it")
    private = _private(name, files.key)
    return Check(name, private.state, found if private.state is State.OK else f"{found}; {private.found}")


def _of_client_authority(name: str, files: CertificateFiles) -> Check:
    """`convmlp health` and `convmlp serve` call the service with its own certificate."""
    try:
        _shake_hands(server_context(files), own_client_context(files))
    except (OSError, InvalidCertificates) as error:
        reason = getattr(error, "verify_message", "") or str(error)
        found = f"{files.client_ca} does not accept the service's own certificate ({reason}), with which"
        advice = "`convmlp health` and `convmlp serve` ask whether it is ready; add its issuer to the file"
        return Check(f"{name} clients", State.NOTE, f"{found} {advice}")
    return Check(f"{name} clients", State.OK, f"certificates that {files.client_ca} accepts")


def _private(name: str, path: Path) -> Check:
    """A file that holds secrets."""
    if path.stat().st_mode & 0o007:
        return Check(name, State.NOTE, f"{path} can be read or written by every user; chmod o-rwx {path}")
    return Check(name, State.OK, str(path))


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """A handshake in memory; the server's certificate, as the client has verified it.

    Raises:
        OSError: one side refuses the other; ssl.SSLCertVerificationError has the reason.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(MAX_ROUNDS):
        waiting = False
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
        if not waiting:
            break
    # With TLS 1.3 a server verifies the client's certificate after the client has finished: it shows at a read.
    for side in reversed(sides):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.read(1)
    return sides[0].getpeercert() or {}
