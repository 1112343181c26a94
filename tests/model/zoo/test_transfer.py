from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.zoo.download_client import (
    CONTENT,
    DOWNLOAD_SCRIPT,
    MAX_BYTES,
    OTHER,
    DownloadClient,
    assert_whole,
    expected_hash,
)
from tests.model.zoo.scripted_server import OLD_DATE, ScriptedReply, Server, scripted_server


@pytest.mark.parametrize("length", [400_000, 900_000])
def test_a_truncated_body_is_incomplete(client: DownloadClient, server: Server, length: int) -> None:
    """A body shorter than its Content-Length is incomplete, at every attempt."""
    server.default = ScriptedReply(length=length, ranges=False)
    assert "127.0.0.1 closed the connection" in client.fails(server.url)
    assert not client.target.exists()


def test_a_length_above_the_limit(client: DownloadClient, server: Server) -> None:
    """A Content-Length above the limit is refused before the body is read."""
    server.default = ScriptedReply(length=MAX_BYTES + 1)
    error = client.fails(server.url)
    assert f"it has at least {MAX_BYTES + 1} bytes; the limit is {MAX_BYTES}" in error
    assert (len(server.requests), client.seen, client.part.exists()) == (1, [], False)


def test_a_body_above_the_limit(client: DownloadClient, server: Server) -> None:
    """Without a Content-Length, the download stops at the limit."""
    server.default = ScriptedReply(content=bytes(5 * MAX_BYTES), framing="chunked")
    assert f"the limit is {MAX_BYTES}" in client.fails(server.url)
    assert (len(server.requests), client.part.exists()) == (1, False)
    assert max(size for size, _ in client.seen) <= MAX_BYTES


def test_a_chunked_body(client: DownloadClient, server: Server) -> None:
    """A chunked body marks its end: it is complete or resumed, although its size is not known before."""
    server.replies = [ScriptedReply(framing="chunked", cut_after=100_000)]
    server.default = ScriptedReply(framing="chunked")
    client.fetch(server.url)
    assert_whole(client)
    assert client.seen[0][1] is None
    assert server.ranges[1] == "bytes=100000-"


def test_chunks_override_a_length(client: DownloadClient, server: Server) -> None:
    """Content-Length is ignored with Transfer-Encoding."""
    server.default = ScriptedReply(framing="chunked", headers={"Content-Length": "5"})
    client.fetch(server.url)
    assert_whole(client)


def test_a_body_without_a_marked_end(client: DownloadClient, server: Server) -> None:
    """A body that ends with the connection is accepted only with a hash."""
    server.default = ScriptedReply(framing="none")
    assert "give its hash with --sha256" in client.fails(server.url)
    client.fetch(server.url, expected_hash(CONTENT))
    assert_whole(client)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304])
def test_permanent_statuses_are_not_retried(client: DownloadClient, server: Server, status: int) -> None:
    """A permanent status fails at once; the error names other sources."""
    server.default = ScriptedReply(status=status, framing="none")
    error = client.fails(server.url)
    assert str(status) in error
    assert "--mirror or --url" in error
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, "the response is a web page"),
        ({"Content-Encoding": "gzip"}, "encoded as gzip"),
    ],
)
def test_a_response_that_is_no_file_is_refused(
    client: DownloadClient, server: Server, headers: dict[str, str], expected: str
) -> None:
    """Web pages, as of portals and error pages, and encoded bodies are refused."""
    server.default = ScriptedReply(headers=headers)
    assert expected in client.fails(server.url)


def test_redirects_are_followed_and_resumed(client: DownloadClient, server: Server) -> None:
    """A redirect to another host is followed; an interrupted body is resumed from the first address."""
    with scripted_server(CONTENT, ScriptedReply(cut_after=100_000)) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        server.default = ScriptedReply(status=302, headers={"Location": there})
        client.fetch(server.url)
    assert_whole(client)
    assert other.ranges == [None, "bytes=100000-"]


def test_credentials_stay_with_their_host(client: DownloadClient, server: Server) -> None:
    """A password in the URL is sent to its host alone, and is in neither messages nor files."""
    with scripted_server(CONTENT, ScriptedReply(cut_after=100_000), ScriptedReply(status=404)) as other:
        server.default = ScriptedReply(status=302, headers={"Location": other.url.replace("127.0.0.1", "localhost")})
        error = client.fails(server.url.replace("127.0.0.1", "me:secret@127.0.0.1"))
    assert server.requests[0]["Authorization"] is not None
    assert other.requests[0]["Authorization"] is None
    left = b"".join(path.read_bytes() for path in client.folder.iterdir())
    assert b"secret" not in left + error.encode() + "".join(client.notices).encode()


def test_a_loop_of_redirects(client: DownloadClient, server: Server) -> None:
    """Redirects are limited."""
    server.default = ScriptedReply(status=301, headers={"Location": server.url})
    assert "redirects more than 5 times" in client.fails(server.url)
    assert len(server.requests) == 6


def test_a_redirect_to_another_scheme(client: DownloadClient, server: Server) -> None:
    """Only http and https are followed."""
    server.default = ScriptedReply(status=302, headers={"Location": "ftp://127.0.0.1/weights.pth"})
    assert "redirects to an unsupported address" in client.fails(server.url)


def test_a_proxy_of_the_environment(client: DownloadClient, server: Server) -> None:
    """The environment's proxy is used, except for hosts in NO_PROXY."""
    proxy = server.url.removesuffix("/weights.pth")
    assert _in_child(client, "http://weights.invalid/weights.pth", {"HTTP_PROXY": proxy}) == ""
    assert server.requests[0]["Host"] == "weights.invalid"
    assert_whole(client)
    assert _in_child(client, server.url, {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}) == ""
    assert server.requests[1]["Host"] == proxy.removeprefix("http://")


@pytest.mark.parametrize("value", ["ftp://127.0.0.1:1", "http://127.0.0.1:no-number"])
def test_an_invalid_proxy(client: DownloadClient, server: Server, value: str) -> None:
    """An invalid proxy is an error with its reason; the host is not contacted directly."""
    assert _in_child(client, server.url, {"HTTP_PROXY": value}).startswith("invalid proxy")
    assert server.requests == []


def test_missing_certificates(client: DownloadClient, server: Server, tmp_path: Path) -> None:
    """Unreadable certificates are an error that names the variable."""
    assert "SSL_CERT_FILE)" in _in_child(client, server.url, {"SSL_CERT_FILE": f"{tmp_path}/none.pem"})


def _in_child(client: DownloadClient, url: str, env: dict[str, str]) -> str:
    """Runs the download in a process with this environment alone; returns its stderr."""
    command = [sys.executable, "-c", DOWNLOAD_SCRIPT, url, str(client.target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env).stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, and its key."""
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


def test_an_untrusted_certificate(client: DownloadClient, certificate: Path) -> None:
    """An untrusted server is refused before a request is sent."""
    with scripted_server(CONTENT, certificate=certificate) as secure:
        assert "the certificate is not trusted" in client.fails(secure.url)
    assert (secure.requests, client.waits_s) == ([], [])


def test_https_is_not_left_for_http(client: DownloadClient, server: Server, certificate: Path) -> None:
    """Over https a file is downloaded; a redirect from https to http is refused."""
    with scripted_server(
        CONTENT, ScriptedReply(status=302, headers={"Location": server.url}), certificate=certificate
    ) as secure:
        env = {"SSL_CERT_FILE": str(certificate)}
        assert "it redirects from https to http (to 127.0.0.1)" in _in_child(client, secure.url, env)
        assert server.requests == []
        assert _in_child(client, secure.url, env) == ""
    assert_whole(client)


def test_interruptions_are_resumed(client: DownloadClient, server: Server) -> None:
    """After each interruption only the rest is requested; waits do not grow while there is progress."""
    server.replies = [
        ScriptedReply(cut_after=100_000),
        ScriptedReply(cut_after=50_000),
        ScriptedReply(cut_after=70_000),
    ]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=220000-"]
    assert all(0.5 <= wait_s <= 1.0 for wait_s in client.waits_s)
    sizes = [size for size, _ in client.seen]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    "act",
    [
        ScriptedReply(ranges=False),
        ScriptedReply(etag=None),
        ScriptedReply(etag='W/"one"'),
        ScriptedReply(etag='"n\xf6"'),
    ],
)
def test_a_server_without_ranges(client: DownloadClient, server: Server, act: ScriptedReply) -> None:
    """A server without Range or strong validators sends the whole file again."""
    cut = ScriptedReply(cut_after=100_000, etag=act.etag)
    server.replies, server.default = [cut], act
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 2


def test_modification_date_as_validator(client: DownloadClient, server: Server) -> None:
    """Without an ETag, Last-Modified is the validator."""
    server.replies = [ScriptedReply(etag=None, last_modified=OLD_DATE, cut_after=100_000)]
    server.default = ScriptedReply(etag=None, last_modified=OLD_DATE)
    client.fetch(server.url)
    assert_whole(client)
    assert server.requests[1]["If-Range"] == OLD_DATE
    assert server.ranges[1] == "bytes=100000-"


def test_a_date_of_this_very_second_is_no_validator(client: DownloadClient, server: Server) -> None:
    """A file modified in the second of the response may change within it, so it is not resumed."""
    server.replies = [ScriptedReply(etag=None, last_modified=OLD_DATE, date=OLD_DATE, cut_after=100_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, None]


@pytest.mark.parametrize("if_range", [True, False])
def test_versions_are_not_mixed(client: DownloadClient, server: Server, if_range: bool) -> None:
    """A new version replaces the old one's bytes, even if the server ignores If-Range."""
    server.replies = [ScriptedReply(cut_after=100_000)]
    server.default = ScriptedReply(content=OTHER, etag='"two"', if_range=if_range)
    client.fetch(server.url)
    assert_whole(client, OTHER)


@pytest.mark.parametrize(
    "content_range", ["bytes 99999-299999/300000", "bytes 100000-299999/300001", "bytes */300000", "chickens", ""]
)
def test_an_unrequested_range_is_discarded(client: DownloadClient, server: Server, content_range: str) -> None:
    """A partial response of another range or size is not appended; the download starts over."""
    server.replies = [ScriptedReply(cut_after=100_000), ScriptedReply(headers={"Content-Range": content_range})]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", None]


@pytest.mark.parametrize(("size", "asked_next"), [(200_000, "bytes=200000-"), (300_001, None)])
def test_a_range_of_another_length(client: DownloadClient, server: Server, size: int, asked_next: str | None) -> None:
    """A shorter rest is resumed; a longer one discards the partial file."""
    rest = {"Content-Range": "bytes 100000-299999/300000"}
    server.replies = [ScriptedReply(cut_after=100_000), ScriptedReply(content=(CONTENT + b"!")[:size], headers=rest)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", asked_next]


def test_an_unsatisfiable_range(client: DownloadClient, server: Server) -> None:
    """416 discards the partial file; the download starts over."""
    server.replies = [ScriptedReply(cut_after=100_000), ScriptedReply(status=416)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", None]


def test_a_part_of_another_url(client: DownloadClient, server: Server) -> None:
    """A partial file of another URL is not resumed, even with an equal ETag."""
    server.replies = [ScriptedReply(cut_after=100_000), ScriptedReply(status=404)]
    client.fails(server.url)
    with scripted_server(OTHER) as mirror:
        client.fetch(mirror.url)
    assert_whole(client, OTHER)
    assert mirror.ranges == [None]


def test_a_complete_partial_file_is_renamed(client: DownloadClient, server: Server) -> None:
    """Complete bytes are used without a request."""
    server.replies = [ScriptedReply(cut_after=299_999), ScriptedReply(status=404)]
    client.fails(server.url)
    with client.part.open("ab") as file:
        file.write(CONTENT[-1:])
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 2


@pytest.mark.parametrize("torn", [b"", b'{"url": "ht', b"[]", b"\xff"])
def test_a_part_of_unknown_origin(client: DownloadClient, server: Server, torn: bytes) -> None:
    """A partial file with a damaged version file is discarded."""
    server.replies = [ScriptedReply(cut_after=100_000), ScriptedReply(status=404)]
    client.fails(server.url)
    client.part.with_name("weights.pth.part.json").write_bytes(torn)
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges[-1] is None
