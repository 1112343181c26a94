"""REST answers that are late, cut off, refused, or of something else; each error in words."""

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
from tests.client.fault_servers import ANSWER, http, problem, scripted_http

QUICK = Retries(attempts=3, first_wait_s=0.001)
AT_ONCE = ("retry-after: 0",)


async def test_a_cut_connection_is_tried_again() -> None:
    """A connection that breaks before the answer is no answer: the picture is sent again."""
    async with scripted_http(None, None, http()) as server, AsyncClient(server.url, retries=QUICK) as client:
        assert (await client.classify(b"picture")).labels[0].label == "cat"
    assert server.asked == 3
    assert len(set(server.header("x-request-id"))) == 1  # the service's log shows that it is one request


@pytest.mark.parametrize(
    "refusal",
    [
        problem("503 Busy", "overloaded", headers=AT_ONCE),
        problem("503 Not yet", "unavailable", headers=AT_ONCE),
        problem("429 Slow down", "rate-limited", headers=AT_ONCE),
        http("503 Service Unavailable", b"<html>", "text/html"),
        http("502 Bad Gateway", b"<html>", "text/html"),
    ],
)
async def test_a_refusal_is_tried_again(refusal: bytes) -> None:
    """The service's own refusals, and those of a proxy before it."""
    async with scripted_http(refusal, http()) as server, AsyncClient(server.url, retries=QUICK) as client:
        assert (await client.classify(b"picture")).labels[0].label == "cat"
    assert server.asked == 2


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (problem("503 Busy", "overloaded", "no room", ("retry-after: 7",)), Overloaded, "no room"),
        (problem("403 Forbidden", "forbidden", "not here"), Forbidden, "not here"),
        (problem("500 Oh", "internal", "see the log"), Internal, "see the log"),
        (problem("418 Teapot", "something-new", "tea"), Internal, "tea"),
        (problem("429 Quota", "quota-used-up", "tomorrow"), RateLimited, "tomorrow"),
        (problem("404 Not Found", "not-found", "nothing at '/x/classify'"), ProtocolError, "nothing at '/x/classify'"),
        (http("404 Not Found", b"", "text/html"), ProtocolError, "404 Not Found, not as this service does"),
        (http("401 Unauthorized", b"", "text/html"), Unauthenticated, "401 Unauthorized"),
        (http("403 Forbidden", b"", "text/html"), Forbidden, "403 Forbidden"),
        (http("413 Too Large", b"", "text/html"), TooLarge, "413"),
        (http("504 Gateway Timeout", b"", "text/html"), DeadlineExceeded, "504"),
        (http("503 Busy", b"{}", "application/problem+json"), Unavailable, "503"),
        (http("301 Moved", b"", headers=("location: https://elsewhere/",)), ProtocolError, "(to https://elsewhere/)"),
        (http("799 What", b"", "text/html"), ProtocolError, "799"),
        (http(body=b"<p>", media_type="text/html"), ProtocolError, "200 OK, not as this service does"),
        (http(body=b"[]"), ProtocolError, "something else than this service does"),
        (http(body=b"\xff"), ProtocolError, "something else than this service does"),
        (http(body={"model": "m", "results": []}), ProtocolError, "0 results for one image"),
        (http(body={"model": "m", "results": [{"image": {}}]}), ProtocolError, "something else than this service does"),
        (http(headers=("content-encoding: gzip",)), ProtocolError, "something else than this service does"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", ConnectionFailed, "broke off before its answer"),
        (None, ConnectionFailed, "broke off before its answer"),
    ],
)
async def test_every_other_answer_is_an_error_in_words(
    answer: bytes | None, kind: type[ClientError], words: str
) -> None:
    """Whatever comes, it is an error of the tree, whose words say what came and from where."""
    async with scripted_http(answer) as server, AsyncClient(server.url, retries=0) as client:
        with pytest.raises(ClientError) as caught:
            await client.classify(b"picture")
    assert type(caught.value) is kind
    assert words in caught.value.detail
    if "/problems/" not in repr(answer):
        assert server.url in caught.value.detail


async def test_retry_after_is_read() -> None:
    """It is told, also where it is not waited for."""
    answers = problem("503 Busy", "overloaded", headers=("retry-after: 7",))
    async with scripted_http(answers) as server, AsyncClient(server.url, retries=0) as client:
        with pytest.raises(Overloaded) as caught:
            await client.classify(b"picture")
    assert caught.value.retry_after_s == 7.0
    dated = problem("503 Busy", "overloaded", headers=("retry-after: Wed, 21 Oct 2026 07:28:00 GMT",))
    async with scripted_http(dated) as server, AsyncClient(server.url, retries=0) as client:
        with pytest.raises(Overloaded) as caught:
            await client.classify(b"picture")
    assert caught.value.retry_after_s is None


async def test_the_services_id_of_a_request_is_kept() -> None:
    """An error, and an answer, has the id that the service wrote to its log."""
    bad = problem("500 Oh", "internal", headers=("x-request-id: from-the-service",))
    async with (
        scripted_http(bad, http(headers=("x-request-id: another",))) as server,
        AsyncClient(server.url) as client,
    ):
        with pytest.raises(Internal) as caught:
            await client.classify(b"picture")
        assert caught.value.request_id == "from-the-service"
        assert (await client.classify(b"picture")).meta.request_id == "another"


async def test_what_is_sent() -> None:
    """The parameters as the query, the deadline and the key as the contract names their headers."""
    async with (
        scripted_http(http(), http(), http(body={"model": "m", "results": []})) as server,
        AsyncClient(f"{server.url}/behind/a/proxy/", api_key="a-key", user_agent="me/1", timeout_s=None) as client,
    ):
        await client.classify(b"picture", top_k=3, model="a b&c")
        await client.classify(b"picture", timeout_s=1.5)
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
    assert 1000 < int(timeouts[1]) <= 1500


async def test_later_attempts_have_less_time() -> None:
    """The deadline is the whole request's: what an attempt took, the next one is not given again."""
    refusal = problem("503 Busy", "overloaded", headers=AT_ONCE)
    retries = Retries(attempts=3, first_wait_s=0.05)
    async with scripted_http(refusal, refusal, http()) as server, AsyncClient(server.url, retries=retries) as client:
        await client.classify(b"picture", timeout_s=20)
    first, second, third = map(int, server.header("x-request-timeout-ms"))
    assert first > second > third


async def test_a_silent_server_is_given_up_at_the_deadline() -> None:
    """It is not asked again: there is no time left."""
    async with scripted_http(b"") as server, AsyncClient(server.url, timeout_s=0.1) as client:
        with pytest.raises(DeadlineExceeded, match=r"no answer from http://127.0.0.1:\d+ within 0.1 s"):
            await client.classify(b"picture")
    assert server.asked == 1


async def test_a_compressed_answer_is_an_answer() -> None:
    """A proxy may compress what the service says."""
    body = gzip.compress(json.dumps({"model": "m", "results": [ANSWER]}).encode())
    answer = http(body=body, media_type="application/json; charset=utf-8", headers=("content-encoding: gzip",))
    async with scripted_http(answer) as server, AsyncClient(server.url) as client:
        assert (await client.classify(b"picture")).labels[0].label == "cat"


async def test_nobody_there_is_told_in_words() -> None:
    """Where nothing listens the error says where that is; a password in the URL is not shown."""
    async with scripted_http(None) as server:
        pass
    address = server.url.removeprefix("http://")
    async with AsyncClient(f"http://me:secret@{address}", retries=0) as client:
        with pytest.raises(ConnectionFailed) as caught:
            await client.classify(b"picture")
        assert await client.ready() is False
    assert f"no connection to http://{address}: " in caught.value.detail
    assert "secret" not in caught.value.detail


async def test_readiness_of_something_else_is_an_error() -> None:
    """A web site is not a service that will be ready soon."""
    async with scripted_http(http(body=b"<p>", media_type="text/html")) as server, AsyncClient(server.url) as client:
        with pytest.raises(ProtocolError):
            await client.ready()
        with pytest.raises(ProtocolError):
            await client.wait_until_ready(10)


async def test_a_service_is_waited_for() -> None:
    """Not ready, and then ready."""
    answers = problem("503 Not yet", "unavailable"), problem("503 Not yet", "unavailable"), http(body={"ready": True})
    async with scripted_http(*answers) as server, AsyncClient(server.url) as client:
        await client.wait_until_ready(20)
    assert server.asked == 3


async def test_connections_are_kept() -> None:
    """One after the other, requests travel on one connection."""
    async with scripted_http(http()) as server, AsyncClient(server.url) as client:
        for _ in range(3):
            await client.classify(b"picture")
    assert (server.asked, server.connections) == (3, 1)
