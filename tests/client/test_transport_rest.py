"""REST responses that are late, broken, refused, or from something else."""

from __future__ import annotations

import gzip
import json

import pytest

from convmlp_client import (
    AsyncClient,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    Internal,
    Overloaded,
    ProtocolError,
    RateLimited,
    Retries,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from tests.client.fault_servers import RESULT, http_server, problem, response
from tests.ports import closed_port

QUICK = Retries(attempts=3, first_wait_s=0.001)
AT_ONCE = ("retry-after: 0",)


async def test_a_broken_connection_is_retried() -> None:
    """A connection that breaks before the response is retried, with the same request id."""
    async with http_server(None, None, response()) as server, AsyncClient(server.url, retries=QUICK) as client:
        assert (await client.classify(b"picture")).labels[0].label == "cat"
    assert server.request_count == 3
    assert len(set(server.header("x-request-id"))) == 1  # one request in the service's log


@pytest.mark.parametrize(
    "refusal",
    [
        problem("503 Busy", "overloaded", headers=AT_ONCE),
        problem("503 Not yet", "unavailable", headers=AT_ONCE),
        problem("429 Slow down", "rate-limited", headers=AT_ONCE),
        response("503 Service Unavailable", b"<html>", "text/html"),
        response("502 Bad Gateway", b"<html>", "text/html"),
    ],
)
async def test_refusals_are_retried(refusal: bytes) -> None:
    """Refusals of the service and of a reverse proxy are retried."""
    async with http_server(refusal, response()) as server, AsyncClient(server.url, retries=QUICK) as client:
        assert (await client.classify(b"picture")).labels[0].label == "cat"
    assert server.request_count == 2


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (problem("503 Busy", "overloaded", "no room", ("retry-after: 7",)), Overloaded, "no room"),
        (problem("403 Forbidden", "forbidden", "not here"), Forbidden, "not here"),
        (problem("500 Oh", "internal", "see the log"), Internal, "see the log"),
        (problem("418 Teapot", "something-new", "tea"), Internal, "tea"),
        (problem("429 Quota", "quota-used-up", "tomorrow"), RateLimited, "tomorrow"),
        (
            problem("404 Not Found", "not-found", "nothing at '/x/classify'"),
            ProtocolError,
            "nothing at '/x/classify'",
        ),
        (
            response("404 Not Found", b"", "text/html"),
            ProtocolError,
            "404 Not Found, which is not a reply of this service",
        ),
        (response("401 Unauthorized", b"", "text/html"), Unauthenticated, "401 Unauthorized"),
        (response("403 Forbidden", b"", "text/html"), Forbidden, "403 Forbidden"),
        (response("413 Too Large", b"", "text/html"), TooLarge, "413"),
        (response("504 Gateway Timeout", b"", "text/html"), DeadlineExceeded, "504"),
        (response("503 Busy", b"{}", "application/problem+json"), Unavailable, "503"),
        (
            response("301 Moved", b"", headers=("location: https://elsewhere/",)),
            ProtocolError,
            "(to https://elsewhere/)",
        ),
        (response("799 What", b"", "text/html"), ProtocolError, "799"),
        (
            response(body=b"<p>", media_type="text/html"),
            ProtocolError,
            "200 OK, which is not a reply of this service",
        ),
        (response(body=b"[]"), ProtocolError, "is not one of this service"),
        (response(body=b"\xff"), ProtocolError, "is not one of this service"),
        (response(body={"model": "m", "results": []}), ProtocolError, "0 results, expected 1"),
        (response(body={"model": "m", "results": [{"image": {}}]}), ProtocolError, "is not one of this service"),
        (response(headers=("content-encoding: gzip",)), ProtocolError, "is not one of this service"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", ConnectionFailed, "broke before the reply"),
        (None, ConnectionFailed, "broke before the reply"),
    ],
)
async def test_other_responses_are_errors(answer: bytes | None, kind: type[ClientError], words: str) -> None:
    """Any other response raises a ClientError that describes the response and names the service."""
    async with http_server(answer) as server, AsyncClient(server.url, retries=0) as client:
        with pytest.raises(ClientError) as caught:
            await client.classify(b"picture")
    assert type(caught.value) is kind
    assert words in caught.value.detail
    if "/problems/" not in repr(answer):
        assert server.url in caught.value.detail


async def test_retry_after_is_read() -> None:
    """A Retry-After in seconds is in the error; a date is ignored."""
    answers = problem("503 Busy", "overloaded", headers=("retry-after: 7",))
    async with http_server(answers) as server, AsyncClient(server.url, retries=0) as client:
        with pytest.raises(Overloaded) as caught:
            await client.classify(b"picture")
    assert caught.value.retry_after_s == 7.0
    dated = problem("503 Busy", "overloaded", headers=("retry-after: Wed, 21 Oct 2026 07:28:00 GMT",))
    async with http_server(dated) as server, AsyncClient(server.url, retries=0) as client:
        with pytest.raises(Overloaded) as caught:
            await client.classify(b"picture")
    assert caught.value.retry_after_s is None


async def test_the_request_id_is_the_services() -> None:
    """Errors and results have the request id that the service returned."""
    bad = problem("500 Oh", "internal", headers=("x-request-id: from-the-service",))
    async with (
        http_server(bad, response(headers=("x-request-id: another",))) as server,
        AsyncClient(server.url) as client,
    ):
        with pytest.raises(Internal) as caught:
            await client.classify(b"picture")
        assert caught.value.request_id == "from-the-service"
        assert (await client.classify(b"picture")).meta.request_id == "another"


async def test_what_a_request_contains() -> None:
    """Parameters are in the query; timeout, API key and user agent are in the documented headers."""
    async with (
        http_server(response(), response(), response(body={"model": "m", "results": []})) as server,
        AsyncClient(f"{server.url}/behind/a/proxy/", api_key="a-key", user_agent="me/1", timeout_s=None) as client,
    ):
        await client.classify(b"picture", top_k=3, model="a b&c")
        await client.classify(b"picture", timeout_s=20)
        with pytest.raises(ProtocolError):
            await client.segment(b"picture", masks=False)
    lines = [head.split("\r\n")[0] for head in server.heads]
    assert set(lines[0].split()[1].partition("?")[2].split("&")) == {"top_k=3", "model=a+b%26c"}
    assert lines[1:] == ["POST /behind/a/proxy/classify HTTP/1.1", "POST /behind/a/proxy/segment?masks=false HTTP/1.1"]
    assert server.header("authorization") == ["bearer a-key"] * 3
    assert server.header("user-agent") == ["me/1"] * 3
    assert server.header("content-type") == ["application/octet-stream"] * 3
    timeouts = server.header("x-request-timeout-ms")
    assert (timeouts[0], timeouts[2]) == ("", "")
    assert 15_000 < int(timeouts[1]) <= 20_000


async def test_later_attempts_have_less_time() -> None:
    """Each attempt sends the time that remains of the whole timeout."""
    refusal = problem("503 Busy", "overloaded", headers=AT_ONCE)
    retries = Retries(attempts=3, first_wait_s=0.05)
    async with (
        http_server(refusal, refusal, response()) as server,
        AsyncClient(server.url, retries=retries) as client,
    ):
        await client.classify(b"picture", timeout_s=20)
    first, second, third = map(int, server.header("x-request-timeout-ms"))
    assert first > second > third


async def test_a_silent_server_times_out() -> None:
    """A server that never responds gives DeadlineExceeded after one attempt."""
    async with http_server(b"") as server, AsyncClient(server.url, timeout_s=0.5) as client:
        with pytest.raises(DeadlineExceeded, match=r"no reply from http://127.0.0.1:\d+ within 0.5 s"):
            await client.classify(b"picture")
    assert server.request_count == 1


async def test_compressed_responses_are_decoded() -> None:
    """A response that a proxy compressed is decoded."""
    body = gzip.compress(json.dumps({"model": "m", "results": [RESULT]}).encode())
    answer = response(body=body, media_type="application/json; charset=utf-8", headers=("content-encoding: gzip",))
    async with http_server(answer) as server, AsyncClient(server.url) as client:
        assert (await client.classify(b"picture")).labels[0].label == "cat"


async def test_a_refused_connection_names_the_service() -> None:
    """If nothing listens, the error has the address without the URL's password, the system's reason and what to check;
    `ready` is False."""
    with closed_port() as port:
        address = f"127.0.0.1:{port}"
        async with AsyncClient(f"http://me:secret@{address}", retries=0) as client:
            with pytest.raises(ConnectionFailed) as caught:
                await client.classify(b"picture")
            assert await client.ready() is False
    refused = f"cannot connect to http://{address}: connection refused"
    assert caught.value.detail == refused


async def test_a_host_without_an_address_is_named() -> None:
    """A host that has no address is an error with the name resolution's reason, and with the port that was meant."""
    async with AsyncClient("http://nohost.invalid", retries=0) as client:
        with pytest.raises(ConnectionFailed, match=r"cannot connect to http://nohost\.invalid \(port 80\): \w+"):
            await client.classify(b"picture")


async def test_readiness_of_something_else_is_an_error() -> None:
    """`ready` and `wait_until_ready` raise ProtocolError at once if the server is another web site."""
    async with (
        http_server(response(body=b"<p>", media_type="text/html")) as server,
        AsyncClient(server.url) as client,
    ):
        with pytest.raises(ProtocolError):
            await client.ready()
        with pytest.raises(ProtocolError):
            await client.wait_until_ready(10)


async def test_wait_until_ready_polls() -> None:
    """`wait_until_ready` polls until the service is ready."""
    answers = (
        problem("503 Not yet", "unavailable"),
        problem("503 Not yet", "unavailable"),
        response(body={"ready": True}),
    )
    async with http_server(*answers) as server, AsyncClient(server.url) as client:
        await client.wait_until_ready(20)
    assert server.request_count == 3


async def test_connections_are_reused() -> None:
    """Consecutive requests use one connection."""
    async with http_server(response()) as server, AsyncClient(server.url) as client:
        for _ in range(3):
            await client.classify(b"picture")
    assert (server.request_count, server.connections) == (3, 1)
