"""API keys and certificates, set as the comments in docker-compose.yml describe."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import httpx2
import pytest
import trustme

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from tests.compose.stack import BASE, ON_CPU, ROOT, SERVICES, Stack, running

PICTURE = REFERENCE_PICTURE.read_bytes()
KEY = "0123456789abcdef0123456789abcdef"
NAME = "vision.example.org"
COMMENTED = re.compile(r"^( *)# ((?:CONVMLP_\w+|secrets|  \w+|    file):.*)$", re.MULTILINE)
"""Lines that are YAML but for the comment sign."""


@dataclass(frozen=True)
class Guarded:
    stack: Stack
    ca: trustme.CA

    def channel(self, own: trustme.LeafCert | None = None) -> grpc.Channel:
        """A connection that trusts the authority, and shows a certificate, if any."""
        chain = b"".join(one.bytes() for one in own.cert_chain_pems) if own else None
        key = own.private_key_pem.bytes() if own else None
        credentials = grpc.ssl_channel_credentials(self.ca.cert_pem.bytes(), key, chain)
        address = self.stack.address("grpc", 8001)
        return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", NAME)])

    def context(self, own: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """The same for HTTPS. The published address is not the certificate's name."""
        context = ssl.create_default_context()
        context.check_hostname = False
        self.ca.configure_trust(context)
        if own is not None:
            own.configure_cert(context)
        return context


@pytest.fixture(scope="module")
def guarded(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:  # noqa: ARG001
    """The stack with everything uncommented: keys for all, mTLS for both transports."""
    folder = tmp_path_factory.mktemp("guarded")
    ca = trustme.CA()
    issued = ca.issue_cert(NAME)
    secrets = {
        "api-keys.txt": f"tester {KEY}\n".encode(),
        "server.pem": b"".join(one.bytes() for one in issued.cert_chain_pems),
        "server-key.pem": issued.private_key_pem.bytes(),
        "callers-ca.pem": ca.cert_pem.bytes(),
    }
    for name, content in secrets.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644)
    text = COMMENTED.sub(r"\1\2", (ROOT / BASE).read_text()).replace("./secrets/", f"{folder}/")
    assert str(folder / "callers-ca.pem") in text
    compose = folder / BASE
    compose.write_text(text)
    stack = Stack("convmlp-test-secrets", (str(compose), *ON_CPU[1:]), {"CONVMLP_MODELS": "convmlp_pets_breed"})
    with running(stack, *SERVICES) as up:
        yield Guarded(up, ca)


def test_callers_must_show_a_certificate_and_a_key(guarded: Guarded) -> None:
    """With a certificate of the authority's and a key REST answers, without the key it refuses, and without the
    certificate nobody connects. The container was healthy, so its check has come through as well."""
    url = f"https://{guarded.stack.address('rest', 8000)}/classify"
    with httpx2.Client(verify=guarded.context(guarded.ca.issue_cert("caller@example.org")), timeout=60) as client:
        assert client.post(url, content=PICTURE).status_code == 401
        assert client.post(url, content=PICTURE, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    with httpx2.Client(verify=guarded.context(), timeout=60) as client, pytest.raises(httpx2.TransportError):
        client.post(url, content=PICTURE)


def test_grpc_callers_must_show_a_certificate_and_a_key(guarded: Guarded) -> None:
    """With a certificate of the authority's and a key a call is answered; without the certificate nobody connects.
    The container was healthy, so its check has come through as well."""
    request = pb.ClassifyRequest(image=PICTURE)
    with guarded.channel(guarded.ca.issue_cert("caller@example.org")) as channel:
        key = (("authorization", f"Bearer {KEY}"),)
        assert VisionStub(channel).Classify(request, timeout=60, metadata=key).labels
    with guarded.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        VisionStub(channel).Classify(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
