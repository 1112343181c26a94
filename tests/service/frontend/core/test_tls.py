"""Which settings turn TLS on, and certificates that are read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.frontend.core.renewal import Reloaded
from service.frontend.core.tls import (
    TRANSPORTS,
    CertificateFiles,
    InvalidCertificates,
    Transport,
    certificate_files,
    server_context,
)
from service.settings import Settings
from tests.service.frontend.certificates import Authority, authority_in, replace


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_certificate_and_key_come_together(transport: Transport) -> None:
    """Without files there is no TLS; a certificate or key alone, or a client authority alone, is an error."""
    some = Path("some.pem")
    certificate, key, client_ca = (f"{transport}_tls_{name}" for name in ("certificate", "key", "client_ca"))
    assert certificate_files(Settings(), transport) is None
    both = Settings(**{certificate: some, key: some})  # type: ignore[arg-type]
    assert certificate_files(both, transport) == CertificateFiles(some, some, None)
    assert [certificate_files(both, other) for other in TRANSPORTS if other != transport] == [None]
    for incomplete in (certificate, key, client_ca):
        with pytest.raises(InvalidCertificates, match=key):
            certificate_files(Settings(**{incomplete: some}), transport)  # type: ignore[arg-type]


def test_an_incomplete_renewal_is_read_once(authority: Authority, tmp_path: Path) -> None:
    """A key that does not fit leaves the last valid pair, is not read at each handshake, and is read once it fits."""
    loads: list[CertificateFiles] = []

    def load(files: CertificateFiles) -> int:
        loads.append(files)
        server_context(files)
        return len(loads)

    certificates = Reloaded(authority.files, load)
    assert certificates.get() == certificates.get() == 1
    key = authority.files.key.read_bytes()
    replace(authority.files.key, authority_in(tmp_path / "other").files.key.read_bytes())
    assert certificates.get() == certificates.get() == 1
    assert len(loads) == 2
    replace(authority.files.key, key)
    assert certificates.get() == certificates.get() == 3
    authority.files.certificate.unlink()
    assert certificates.get() == 3
