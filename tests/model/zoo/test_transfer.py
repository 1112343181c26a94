from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.zoo.fetching import BOUND, CHILD, CONTENT, OTHER, Client, assert_whole, given
from tests.model.zoo.server import OLD_DATE, Act, Server, serving


@pytest.mark.parametrize("said", [400_000, 900_000])
def test_a_length_too_long(client: Client, server: Server, said: int) -> None:
    """A file that ends before its Content-Length is not taken for whole, however often it is asked for."""
    server.then = Act(length=said, ranges=False)
    assert "127.0.0.1 closed the connection" in client.fails(server.url)
    assert not client.target.exists()


def test_a_length_above_the_bound(client: Client, server: Server) -> None:
    """A file that says it is too large is refused before it comes, at once, and leaves nothing."""
    server.then = Act(length=BOUND + 1)
    said = client.fails(server.url)
    assert f"it has at least {BOUND + 1} bytes; the limit is {BOUND}" in said
    assert (len(server.requests), client.seen, client.part.exists()) == (1, [], False)


def test_more_bytes_than_the_bound(client: Client, server: Server) -> None:
    """A server that names no length and sends too much is cut off at the bound."""
    server.then = Act(content=bytes(5 * BOUND), framing="chunked")
    assert f"the limit is {BOUND}" in client.fails(server.url)
    assert (len(server.requests), client.part.exists()) == (1, False)
    assert max(size for size, _ in client.seen) <= BOUND


def test_chunks_without_a_length(client: Client, server: Server) -> None:
    """A chunked response has a sure end: it is whole or gone on from, though its size is not known before."""
    server.acts = [Act(framing="chunked", cut_after=100_000)]
    server.then = Act(framing="chunked")
    client.fetch(server.url)
    assert_whole(client)
    assert client.seen[0][1] is None
    assert server.ranges[1] == "bytes=100000-"


def test_chunks_overrule_a_length(client: Client, server: Server) -> None:
    """A length beside chunks means nothing, as the standard says."""
    server.then = Act(framing="chunked", headers={"Content-Length": "5"})
    client.fetch(server.url)
    assert_whole(client)


def test_no_end_that_one_can_see(client: Client, server: Server) -> None:
    """A response that ends with its connection is taken only where a hash can prove it whole."""
    server.then = Act(framing="none")
    assert "give its hash with --sha256" in client.fails(server.url)
    client.fetch(server.url, given(CONTENT))
    assert_whole(client)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304])
def test_a_clear_no_is_not_asked_again(client: Client, server: Server, status: int) -> None:
    """A response that will not change ends the download at once and says where else to look."""
    server.then = Act(status=status, framing="none")
    said = client.fails(server.url)
    assert str(status) in said
    assert "--mirror or --url" in said
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, "the response is a web page"),
        ({"Content-Encoding": "gzip"}, "encoded as gzip"),
    ],
)
def test_what_is_no_file(client: Client, server: Server, headers: dict[str, str], said: str) -> None:
    """A web page, as portals and error pages are, and an encoded response are not taken for the file."""
    server.then = Act(headers=headers)
    assert said in client.fails(server.url)


def test_redirects_are_followed_and_resumed(client: Client, server: Server) -> None:
    """One redirect, to another host, is followed; a cut behind it is gone on from, by way of the first address."""
    with serving(CONTENT, Act(cut_after=100_000)) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        server.then = Act(status=302, headers={"Location": there})
        client.fetch(server.url)
    assert_whole(client)
    assert other.ranges == [None, "bytes=100000-"]


def test_credentials_stay_with_their_host(client: Client, server: Server) -> None:
    """A password in the URL goes to its host alone, and into neither messages nor files."""
    with serving(CONTENT, Act(cut_after=100_000), Act(status=404)) as other:
        server.then = Act(status=302, headers={"Location": other.url.replace("127.0.0.1", "localhost")})
        said = client.fails(server.url.replace("127.0.0.1", "me:secret@127.0.0.1"))
    assert server.requests[0]["Authorization"] is not None
    assert other.requests[0]["Authorization"] is None
    left = b"".join(path.read_bytes() for path in client.folder.iterdir())
    assert b"secret" not in left + said.encode() + "".join(client.notices).encode()


def test_a_loop_of_redirects(client: Client, server: Server) -> None:
    """Redirects are bounded."""
    server.then = Act(status=301, headers={"Location": server.url})
    assert "redirects more than 5 times" in client.fails(server.url)
    assert len(server.requests) == 6


def test_a_redirect_to_no_web_address(client: Client, server: Server) -> None:
    """Only http and https are followed."""
    server.then = Act(status=302, headers={"Location": "ftp://127.0.0.1/weights.pth"})
    assert "redirects to an unsupported address" in client.fails(server.url)


def test_a_proxy_of_the_environment(client: Client, server: Server) -> None:
    """The environment's proxy is asked in a host's place, but for the hosts that NO_PROXY names."""
    proxy = server.url.removesuffix("/weights.pth")
    assert _in_child(client, "http://weights.invalid/weights.pth", {"HTTP_PROXY": proxy}) == ""
    assert server.requests[0]["Host"] == "weights.invalid"
    assert_whole(client)
    assert _in_child(client, server.url, {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}) == ""
    assert server.requests[1]["Host"] == proxy.removeprefix("http://")


@pytest.mark.parametrize("value", ["ftp://127.0.0.1:1", "http://127.0.0.1:no-number"])
def test_a_proxy_that_cannot_be(client: Client, server: Server, value: str) -> None:
    """A proxy that is none is a failure with its reason, not a trace, and the host is not asked past it."""
    assert _in_child(client, server.url, {"HTTP_PROXY": value}).startswith("the environment's proxy or certificates ")
    assert server.requests == []


def test_certificates_that_are_not_there(client: Client, server: Server, tmp_path: Path) -> None:
    """A file of trusted certificates that cannot be read is a failure that names its variable."""
    assert "SSL_CERT_FILE) cannot be used" in _in_child(client, server.url, {"SSL_CERT_FILE": f"{tmp_path}/none.pem"})


def _in_child(client: Client, url: str, env: dict[str, str]) -> str:
    """The same download in a process with this environment alone; what it says as it fails."""
    command = [sys.executable, "-c", CHILD, url, str(client.target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env).stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the certificate is made with the openssl command")
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    key, cert = pem.with_name("key"), pem.with_name("cert")
    made = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    pem.write_bytes(key.read_bytes() + cert.read_bytes())
    return pem


def test_a_certificate_that_nobody_trusts(client: Client, certificate: Path) -> None:
    """An untrusted server is refused at once, before a request reaches it."""
    with serving(CONTENT, certificate=certificate) as secure:
        assert "the certificate is not trusted" in client.fails(secure.url)
    assert (secure.requests, client.waits_s) == ([], [])


def test_https_is_not_left_for_http(client: Client, server: Server, certificate: Path) -> None:
    """Over https the file comes; a redirect from there to http is refused, and http is not asked."""
    with serving(CONTENT, Act(status=302, headers={"Location": server.url}), certificate=certificate) as secure:
        env = {"SSL_CERT_FILE": str(certificate)}
        assert "it redirects from https to http (to 127.0.0.1)" in _in_child(client, secure.url, env)
        assert server.requests == []
        assert _in_child(client, secure.url, env) == ""
    assert_whole(client)


def test_cuts_are_gone_on_from(client: Client, server: Server) -> None:
    """After each of several cuts only the missing rest is asked for, and the pauses do not grow while bytes come."""
    server.acts = [Act(cut_after=100_000), Act(cut_after=50_000), Act(cut_after=70_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=220000-"]
    assert all(0.5 <= wait_s <= 1.0 for wait_s in client.waits_s)
    sizes = [size for size, _ in client.seen]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("act", [Act(ranges=False), Act(etag=None), Act(etag='W/"one"'), Act(etag='"n\xf6"')])
def test_where_no_part_can_be_had(client: Client, server: Server, act: Act) -> None:
    """A server that ignores Range, or cannot tell versions apart for sure, sends the whole file again."""
    cut = Act(cut_after=100_000, etag=act.etag)
    server.acts, server.then = [cut], act
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 2


def test_modification_date_as_validator(client: Client, server: Server) -> None:
    """Without an ETag, Last-Modified says whether the part still fits."""
    server.acts = [Act(etag=None, last_modified=OLD_DATE, cut_after=100_000)]
    server.then = Act(etag=None, last_modified=OLD_DATE)
    client.fetch(server.url)
    assert_whole(client)
    assert server.requests[1]["If-Range"] == OLD_DATE
    assert server.ranges[1] == "bytes=100000-"


def test_a_date_of_this_very_second_is_no_validator(client: Client, server: Server) -> None:
    """A file modified in the second of the response may change within it, so its rest is not asked for."""
    server.acts = [Act(etag=None, last_modified=OLD_DATE, date=OLD_DATE, cut_after=100_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, None]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_is_not_glued(client: Client, server: Server, if_range: bool) -> None:
    """A new version replaces what came of the old one, even where the server sends its rest all the same."""
    server.acts = [Act(cut_after=100_000)]
    server.then = Act(content=OTHER, etag='"two"', if_range=if_range)
    client.fetch(server.url)
    assert_whole(client, OTHER)


@pytest.mark.parametrize(
    "content_range", ["bytes 99999-299999/300000", "bytes 100000-299999/300001", "bytes */300000", "chickens", ""]
)
def test_a_part_that_was_not_asked_for(client: Client, server: Server, content_range: str) -> None:
    """A partial response of another place or size is not appended; the file comes anew."""
    server.acts = [Act(cut_after=100_000), Act(headers={"Content-Range": content_range})]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", None]


@pytest.mark.parametrize(("size", "asked_next"), [(200_000, "bytes=200000-"), (300_001, None)])
def test_a_part_of_another_length(client: Client, server: Server, size: int, asked_next: str | None) -> None:
    """A rest that ends early is gone on from; one that is longer than the file discredits what came."""
    rest = {"Content-Range": "bytes 100000-299999/300000"}
    server.acts = [Act(cut_after=100_000), Act(content=(CONTENT + b"!")[:size], headers=rest)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", asked_next]


def test_a_part_that_the_server_has_not(client: Client, server: Server) -> None:
    """416 lets the part go, and the file comes anew."""
    server.acts = [Act(cut_after=100_000), Act(status=416)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", None]


def test_a_part_of_another_url(client: Client, server: Server) -> None:
    """What came from one address is not gone on from at another, even with the same ETag."""
    server.acts = [Act(cut_after=100_000), Act(status=404)]
    client.fails(server.url)
    with serving(OTHER) as mirror:
        client.fetch(mirror.url)
    assert_whole(client, OTHER)
    assert mirror.ranges == [None]


def test_a_part_that_only_wanted_its_name(client: Client, server: Server) -> None:
    """Bytes that were all there when the process ended are taken without asking for them again."""
    server.acts = [Act(cut_after=299_999), Act(status=404)]
    client.fails(server.url)
    with client.part.open("ab") as file:
        file.write(CONTENT[-1:])
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 2


@pytest.mark.parametrize("torn", [b"", b'{"url": "ht', b"[]", b"\xff"])
def test_a_part_of_unknown_origin(client: Client, server: Server, torn: bytes) -> None:
    """A part whose description is torn counts as nothing."""
    server.acts = [Act(cut_after=100_000), Act(status=404)]
    client.fails(server.url)
    client.part.with_name("weights.pth.part.json").write_bytes(torn)
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges[-1] is None
