"""Pictures by URL: which are fetched, from which addresses, and the bounds; with a name service of the test's own."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from model.errors import ConvMLPError, ImageTooLarge
from service.errors import DeadlineExceeded, FetchFailed, FetchTimeout, Overloaded, UrlRefused
from service.frontend.core.address_policy import AddressPolicy, host_rule
from service.frontend.core.engine import ByteBudget
from service.frontend.core.http_source import HttpSource
from service.frontend.core.image_fetcher import ImageFetcher
from service.frontend.core.request_log import RequestLog, RequestRecord
from service.frontend.core.tls import server_context
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import NO_TRACING
from service.settings import Settings
from tests.service.frontend.certificates import Authority
from tests.service.frontend.picture_site import PictureSite, drips, open_site, redirects, sends
from tests.waiting import until

ONE_HOST = HttpSource([host_rule("pictures.test:80")], AddressPolicy())
PICTURE = bytes(range(256)) * 40
LOOPBACK = ("127.0.0.1",)


@dataclass
class Names:
    """A name service: of each name the addresses by question; the last ones stay. `asked` are the names."""

    addresses: dict[str, list[Sequence[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:  # noqa: ARG002
        self.asked.append(host)
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.addresses[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Fetching:
    """A fetcher that may fetch from `pictures.test`, all names below `more.test`, and 127.0.0.1, at the site's port."""

    def __init__(
        self,
        site: PictureSite,
        names: Names | None = None,
        tls: ssl.SSLContext | None = None,
        **overrides: Any,  # noqa: ANN401
    ) -> None:
        hosts = [f"{host}:{site.port}" for host in ("pictures.test", "*.more.test", "127.0.0.1", "localhost")]
        settings = Settings(**{"fetch_urls": hosts, "fetch_private_networks": ["127.0.0.1"], **overrides})
        self.registry = CollectorRegistry()
        metrics = FrontEndMetrics(self.registry)
        self.names = names or Names({"pictures.test": [LOOPBACK], "a.more.test": [LOOPBACK], "localhost": [LOOPBACK]})
        self.bodies = ByteBudget(settings.max_in_flight_bytes, lambda: 1.0)
        self.fetcher = ImageFetcher(settings, metrics, self.bodies.take, self.names, tls)
        self._log = RequestLog("rest", metrics, NO_TRACING, access_log=False)

    def record(self, caller: str = "one") -> RequestRecord:
        record = self._log.request("", "POST")
        record.caller = caller
        return record

    async def __call__(
        self, url: str, *, timeout_s: float = 30.0, caller: str = "one", authorization: str | None = None
    ) -> bytes:
        deadline_s = time.monotonic() + timeout_s
        return await self.fetcher.fetch(url, self.record(caller), deadline_s, authorization=authorization)

    def count(self, outcome: str) -> float:
        return self.registry.get_sample_value("convmlp_fetches_total", {"outcome": outcome}) or 0.0


@pytest_asyncio.fixture
async def site() -> AsyncIterator[PictureSite]:
    async with open_site() as running:
        running.answers["/picture"] = sends(PICTURE)
        yield running


async def refused(fetching: Fetching, url: str, kind: type[ConvMLPError], *words: str, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(kind) as caught:
        await fetching(url, **options)
    detail = str(caught.value)
    assert type(caught.value) is kind, detail
    assert all(word in detail for word in words), detail
    assert "secret" not in detail
    assert fetching.count(kind.code) == 1
    return detail


async def test_a_picture_by_name(site: PictureSite) -> None:
    """The bytes come unchanged, the host is asked by its own name, and nothing of the caller or the environment is
    sent."""
    fetching = Fetching(site)
    assert await fetching(site.url("/picture?size=1", "pictures.test")) == PICTURE
    assert await fetching(site.url("/picture", "a.more.test")) == PICTURE
    assert await fetching(site.url("/picture", "PICTURES.test.")) == PICTURE
    first = site.heads[0].lower().splitlines()
    assert (first[0], first[1]) == ("get /picture?size=1 http/1.1", f"host: pictures.test:{site.port}")
    assert {line.partition(":")[0] for line in first[1:] if line} == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "connection",
    }
    assert fetching.count("ok") == 3


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://other.test:{port}/secret", ("other.test", "fetch_urls")),
        ("http://more.test:{port}/secret", ("more.test",)),
        ("http://evilmore.test:{port}/secret", ("evilmore.test",)),
        ("http://pictures.test/secret", ("pictures.test",)),
        ("https://pictures.test:0/secret", ("pictures.test, port 0",)),
        ("https://pictures.test:1/secret", ("pictures.test, port 1",)),
        ("http://user:secret@pictures.test:{port}/", ("user's name or password",)),
        ("http://pictures.test:{port}@other.test/secret", ("user's name or password",)),
        ("ftp://pictures.test:{port}/secret", ("http or https",)),
        ("file:///secret", ("http or https",)),
        ("http:///secret", ("https://HOST/PATH",)),
        ("http://pictures.test:99999999/secret", ("port 99999999",)),
        ("http://[::1/secret", ("https://HOST/PATH",)),
        ("http://pictures.test:{port}/" + "x" * 5000, ("at most 4096",)),
    ],
)
async def test_urls_that_are_not_allowed(site: PictureSite, url: str, words: tuple[str, ...]) -> None:
    """A URL of another scheme, host or port is refused before a name is resolved; the error does not repeat it."""
    fetching = Fetching(site)
    await refused(fetching, url.format(port=site.port), UrlRefused, *words)
    assert fetching.names.asked == site.heads == []


@given(
    prefix=st.sampled_from(
        ["", "http://", "https://", "HTTP://", "http:", "http://pictures.test", "http://pictures.test:80"]
    ),
    rest=st.text(st.sampled_from("pictures.test:@/\\\\?#%[]0123456789 \t\nxX-_é\u3002\u2028\0"), max_size=30)
    | st.text(max_size=30),
)
def test_any_text_is_an_allowed_url_or_refused(prefix: str, rest: str) -> None:
    """Whatever stands in a URL's place, what is fetched is of the one allowed host; all else is the caller's error."""
    try:
        url = ONE_HOST.parse(prefix + rest)
    except UrlRefused:
        return
    assert (url.scheme, url.host, url.port or 80, url.userinfo) == ("http", "pictures.test", 80, b"")


async def test_without_the_setting_nothing_is_fetched(site: PictureSite) -> None:
    """The default refuses all URLs, and names the setting."""
    fetching = Fetching(site, fetch_urls=[])
    await refused(fetching, site.url("/picture"), UrlRefused, "does not fetch", "fetch_urls")
    assert site.heads == []


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        *((address, False) for address in ("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254")),
        *((address, False) for address in ("169.254.169.254", "172.31.0.1", "192.0.0.1", "192.168.1.1", "198.18.0.1")),
        *((address, False) for address in ("224.0.0.1", "240.0.0.1", "255.255.255.255")),
        *((address, False) for address in ("::", "::1", "::10.0.0.1", "::ffff:10.0.0.1", "::ffff:7f00:1")),
        *((address, False) for address in ("64:ff9b::a00:1", "64:ff9b:1::1", "2002:a00:1::1", "2002:7f00:1::")),
        *((address, False) for address in ("2001:0:1::1", "2001:db8::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%2")),
        *((address, False) for address in ("fec0::1", "ff02::1")),
    ],
)
def test_addresses(address: str, allowed: bool) -> None:
    """Public addresses are allowed; all others are not, also inside an address of IPv6. An opened network is."""
    assert AddressPolicy().allows(ip_address(address)) == allowed
    assert AddressPolicy(["0.0.0.0/0", "::/0"]).allows(ip_address(address))


def test_an_opened_network_opens_no_other() -> None:
    """Of private addresses those of the named networks are allowed, in each of their forms."""
    policy = AddressPolicy(["192.168.1.0/24", "fd00::/8"])
    assert all(policy.allows(ip_address(text)) for text in ("192.168.1.9", "::ffff:192.168.1.9", "fd00::9"))
    assert not any(policy.allows(ip_address(text)) for text in ("192.168.2.9", "127.0.0.1", "fc00::9"))


@pytest.mark.parametrize(
    ("rule", "url", "allowed"),
    [
        ("example.org", ("https", "example.org", 443), True),
        ("Example.ORG", ("http", "example.org", 80), True),
        ("example.org", ("https", "example.org", 8443), False),
        ("example.org:8443", ("https", "example.org", 8443), True),
        ("example.org:8443", ("https", "example.org", 443), False),
        ("example.org", ("https", "www.example.org", 443), False),
        ("*.example.org", ("https", "a.b.example.org", 443), True),
        ("*.example.org", ("https", "example.org", 443), False),
        ("[fd00:0::9]", ("http", "fd00::9", 80), True),
        ("[fd00::9]:81", ("http", "fd00::9", 81), True),
        ("10.0.0.9", ("http", "10.0.0.9", 80), True),
    ],
)
def test_hosts(rule: str, url: tuple[str, str, int], allowed: bool) -> None:
    """A rule is of one host or of all below it, and of one port: the scheme's own, or the one it names."""
    assert host_rule(rule).allows(*url) == allowed


@pytest.mark.parametrize("rule", ["https://example.org", "*", "*.*.org", "example.org/x", "a b", "example.org:x", ""])
def test_malformed_hosts_are_refused(rule: str) -> None:
    """A setting that is no host ends the start, instead of matching nothing."""
    with pytest.raises(ValueError, match="HOST"):
        Settings(fetch_urls=[rule])


@pytest.mark.parametrize("answer", [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%1"]])
async def test_names_of_private_addresses(site: PictureSite, answer: list[str]) -> None:
    """A name is refused if any of its addresses is; the caller does not learn the address."""
    fetching = Fetching(site, Names({"pictures.test": [answer]}))
    detail = await refused(fetching, site.url("/picture", "pictures.test"), UrlRefused, "not public")
    assert not any(address in detail for address in answer)
    assert site.heads == []


async def test_a_name_that_changes_its_address(site: PictureSite) -> None:
    """A connection goes to the address that was checked: a name is resolved once for it, and checked anew for each."""
    fetching = Fetching(site, Names({"pictures.test": [LOOPBACK, ["10.0.0.1"]]}))
    assert await fetching(site.url("/picture", "pictures.test")) == PICTURE
    assert fetching.names.asked == ["pictures.test"]
    await refused(fetching, site.url("/picture", "pictures.test"), UrlRefused, "not public")


async def test_another_address_is_tried(site: PictureSite) -> None:
    """Where the first address of a name takes no connection, the next one is tried."""
    names = Names({"pictures.test": [["127.0.0.9", "127.0.0.1"]]})
    fetching = Fetching(site, names, fetch_private_networks=["127.0.0.0/8"])
    assert await fetching(site.url("/picture", "pictures.test")) == PICTURE


async def test_redirects_are_followed_and_checked(site: PictureSite) -> None:
    """Three redirects are followed; each is checked as the first URL was. Credentials stay with their origin."""
    site.answers |= {f"/{left}": redirects(f"/{left - 1}?secret", 301 + left % 3) for left in (2, 3, 4)}
    site.answers |= {"/1": redirects(site.url("/picture", "a.more.test"))}
    assert await Fetching(site)(site.url("/3", "pictures.test"), authorization="Token secret") == PICTURE
    sent = ["authorization: token secret" in head.lower() for head in site.heads]
    assert sent == [True, True, True, False]
    await refused(Fetching(site), site.url("/4"), FetchFailed, "more than 3 times")
    for location, words in (
        ("http://other.test/secret", "other.test"),
        ("file:///secret", "http or https"),
        (site.url("/secret", "inside.more.test"), "not public"),
    ):
        site.answers["/away"] = redirects(location)
        fetching = Fetching(site, Names({"inside.more.test": [["10.0.0.1"]]}))
        await refused(fetching, site.url("/away"), UrlRefused, words)
    site.answers["/loop"] = redirects("/loop")
    await refused(Fetching(site), site.url("/loop"), FetchFailed, "more than 3 times")
    site.answers["/nowhere"] = sends(b"", "HTTP/1.1 302 Found")
    await refused(Fetching(site), site.url("/nowhere"), FetchFailed, "without a Location")


async def test_bytes_are_bounded(site: PictureSite) -> None:
    """A picture of more bytes is refused by its Content-Length, or as soon as they have come; a request's likewise."""
    limits: dict[str, Any] = {"max_image_bytes": 20_000}
    site.answers |= {"/long": sends(b"", length=20_001), "/endless": drips(bytes(4096))}
    await refused(Fetching(site, **limits), site.url("/long"), ImageTooLarge, "20,000 bytes", "127.0.0.1")
    await refused(Fetching(site, **limits), site.url("/endless"), ImageTooLarge, "20,000 bytes")
    fetching = Fetching(site, max_request_bytes=2 * len(PICTURE))
    record = fetching.record()
    for _ in range(2):
        await fetching.fetcher.fetch(site.url("/picture"), record, time.monotonic() + 30)
    assert record.held_bytes == 2 * len(PICTURE)
    with pytest.raises(ImageTooLarge, match="with the picture"):
        await fetching.fetcher.fetch(site.url("/picture"), record, time.monotonic() + 30)
    fetching = Fetching(site, max_in_flight_bytes=len(PICTURE) - 1)
    await refused(fetching, site.url("/picture"), Overloaded, "requests in progress")


async def test_time_is_bounded(site: PictureSite) -> None:
    """A picture that comes byte by byte is given up after the setting's time, or at the request's deadline."""
    site.answers["/slow"] = drips(b"x", pause_s=0.01)
    await refused(Fetching(site, fetch_timeout_ms=100), site.url("/slow?secret"), FetchTimeout, "0.1 s", "127.0.0.1")
    await refused(Fetching(site), site.url("/slow?secret"), DeadlineExceeded, "127.0.0.1", timeout_s=0.1)


async def test_failures_of_the_host(site: PictureSite) -> None:
    """A host that is not there, answers with an error, or breaks off is an error that names it, and no more."""
    site.answers |= {
        "/missing": sends(b"secret", "HTTP/1.1 404 Not Found"),
        "/strange": sends(b"", "HTTP/1.1 299 Secret"),
        "/cut": sends(PICTURE, length=len(PICTURE) + 1),
        "/gzip": sends(PICTURE, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip"),
        "/noise": sends(b"", "secret"),
    }
    for path, words in (
        ("/missing", "answers 404 Not Found"),
        ("/strange", "answers 299 for"),
        ("/cut", "cut off"),
        ("/gzip", "Content-Encoding 'gzip'"),
        ("/noise", "not valid HTTP"),
    ):
        await refused(Fetching(site), site.url(path), FetchFailed, "127.0.0.1", words)
    await refused(Fetching(site), site.url("/x", "b.more.test"), FetchFailed, "b.more.test", "cannot be resolved")
    with socket.socket() as silent:  # bound, and does not listen
        silent.bind(("127.0.0.1", 0))
        closed = PictureSite(silent.getsockname()[1])
        await refused(Fetching(closed), closed.url("/"), FetchFailed, "127.0.0.1", "refused")


async def test_tls_is_verified(authority: Authority) -> None:
    """A certificate must be of a trusted authority and of the URL's name; https does not lead to http."""
    async with open_site(server_context(authority.files)) as site:
        site.answers |= {"/picture": sends(PICTURE), "/down": redirects("http://localhost/secret")}
        trusting = Fetching(site, tls=authority.client_context())
        assert await trusting(site.url("/picture", "localhost", "https")) == PICTURE
        await refused(trusting, site.url("/down", "localhost", "https"), UrlRefused, "from https to http")
        await refused(trusting, site.url("/picture", "a.more.test", "https"), FetchFailed, "not trusted")
        await refused(Fetching(site), site.url("/picture", "localhost", "https"), FetchFailed, "not trusted")


async def test_fetches_are_bounded_and_shared(site: PictureSite) -> None:
    """Beyond the limit fetches wait their turn, and beyond that they are refused; one caller does not take all."""
    released = asyncio.Event()

    async def held(writer: asyncio.StreamWriter) -> None:
        await released.wait()
        await sends(PICTURE)(writer)

    site.answers["/held"] = held
    fetching = Fetching(site, max_fetches=3, max_in_flight=4)
    many = [asyncio.create_task(fetching(site.url("/held"))) for _ in range(5)]
    await until(lambda: len(site.heads) == 2)
    other = asyncio.create_task(fetching(site.url("/held"), caller="two"))
    await until(lambda: len(site.heads) == 3)
    waiting = asyncio.create_task(fetching(site.url("/held"), caller="three"))
    await asyncio.sleep(0)
    await refused(fetching, site.url("/held"), Overloaded, "4 pictures wait")
    many[4].cancel()
    released.set()
    assert await asyncio.gather(*many[:4], other, waiting) == [PICTURE] * 6
    assert await fetching(site.url("/picture")) == PICTURE
    assert fetching.count("cancelled") == 1
