"""Which callers are admitted, under which name, and how often."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.errors import RateLimited, Unauthenticated
from service.frontend.core.auth import ApiKeys, Auth, Caller, InvalidKeysFile, open_auth
from service.frontend.core.rate_limit import RateLimit
from service.observability.metrics import FrontEndMetrics
from service.settings import Settings

KEY = "0123456789abcdef"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    (tmp_path / "keys").write_text(f"partner {KEY}\n", encoding="ascii")
    return ApiKeys(tmp_path / "keys")


def one_a_minute() -> RateLimit:
    """One permit, and no other while a test lasts."""
    return RateLimit(per_s=1 / 60, burst=1, clock=lambda: 0.0)


def rejected(registry: CollectorRegistry, reason: str) -> float:
    return registry.get_sample_value("convmlp_rejected_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize("authorization", [None, "", "nonsense", f"Bearer {KEY}"])
def test_without_keys_every_caller_is_admitted(registry: CollectorRegistry, authorization: str | None) -> None:
    """An open service takes whatever credentials come, and a caller is its host."""
    auth = Auth(None, None, FrontEndMetrics(registry))
    assert auth.identify(authorization, "192.0.2.7") == "192.0.2.7"
    assert not auth.needs_key


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {KEY}",
        f"bearer {KEY}",
        f"BEARER   {KEY} ",
        basic(f"anyone:{KEY}"),
        basic(f":{KEY}").replace("Basic", "basic"),
    ],
)
def test_a_key_names_its_caller(registry: CollectorRegistry, keys: ApiKeys, authorization: str) -> None:
    """With a good key the caller is the key's name, wherever it comes from; the scheme's case is free. The key may be
    the password of basic authentication, of any user."""
    auth = Auth(keys, None, FrontEndMetrics(registry))
    assert auth.identify(authorization, "192.0.2.7") == auth.identify(authorization, "192.0.2.8") == "partner"
    assert rejected(registry, "credentials") == 0


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        (None, "the request has none"),
        ("", "the request has none"),
        (KEY, "the request has none"),
        ("Bearer", "the request has none"),
        ("Bearer ", "the request has none"),
        (f"Basic {KEY}", "the request has none"),
        (basic(KEY), "the request has none"),
        (basic(f"{KEY}:"), "the request has none"),
        (basic("anyone:fedcba9876543210"), "the API key is wrong"),
        (basic(f"anyone:{KEY}:"), "the API key is wrong"),
        (f"Bearer{KEY}", "the request has none"),
        ("Bearer fedcba9876543210", "the API key is wrong"),
        (f"Bearer {KEY} {KEY}", "the API key is wrong"),
        ("Bearer partner", "the API key is wrong"),
    ],
)
def test_no_key_or_a_wrong_one(
    registry: CollectorRegistry, keys: ApiKeys, authorization: str | None, words: str
) -> None:
    """Anything but a known key is refused in words that do not repeat it, and counted."""
    auth = Auth(keys, None, FrontEndMetrics(registry))
    with pytest.raises(Unauthenticated, match=words) as refused:
        auth.identify(authorization, "192.0.2.7")
    assert "0123456789abcdef" not in str(refused.value)
    assert "fedcba" not in str(refused.value)
    assert rejected(registry, "credentials") == 1


def test_over_the_rate(registry: CollectorRegistry) -> None:
    """A caller over its rate gets the time until its next image is admitted, is counted, and costs others nothing."""
    auth = Auth(None, one_a_minute(), FrontEndMetrics(registry))
    first, second = auth.identify(None, "192.0.2.7"), auth.identify(None, "192.0.2.8")
    auth.admit(first)
    with pytest.raises(RateLimited) as refused:
        auth.admit(first)
    assert refused.value.retry_after_s == pytest.approx(60, abs=1e-3)
    assert rejected(registry, "rate") == 1
    auth.admit(second)


def test_further_images_are_charged(registry: CollectorRegistry) -> None:
    """A request of several images is admitted as one, and its caller waits for all of them."""
    auth = Auth(None, one_a_minute(), FrontEndMetrics(registry))
    caller = auth.identify(None, "192.0.2.7")
    auth.admit(caller)
    auth.charge(caller, 3)
    with pytest.raises(RateLimited) as refused:
        auth.admit(caller)
    assert refused.value.retry_after_s == pytest.approx(4 * 60, abs=1e-3)


def test_without_a_rate_nothing_is_limited(registry: CollectorRegistry) -> None:
    """No limit means none, whatever was charged."""
    auth = Auth(None, None, FrontEndMetrics(registry))
    for _ in range(1000):
        auth.admit(Caller("a"))
        auth.charge(Caller("a"), 1000)


@pytest.mark.parametrize(
    ("host", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
        ("", ""),
    ],
)
def test_hosts_whose_rate_is_one(registry: CollectorRegistry, host: str, caller: str) -> None:
    """An IPv6 caller is its /64, since it has all of its addresses; a mapped IPv4 address is that address."""
    assert Auth(None, one_a_minute(), FrontEndMetrics(registry)).identify(None, host) == caller


async def test_settings_configure_authentication(registry: CollectorRegistry, keys: ApiKeys, tmp_path: Path) -> None:
    """The file and the rate of the settings apply to callers."""
    settings = Settings(api_keys_file=tmp_path / "keys", rate_limit_per_s=0.001, rate_limit_burst=2)
    async with open_auth(settings, FrontEndMetrics(registry)) as auth:
        assert auth.needs_key
        caller = auth.identify(f"Bearer {KEY}", "")
        assert caller == keys.name_of(KEY)
        auth.admit(caller)
        auth.admit(caller)
        with pytest.raises(RateLimited):
            auth.admit(caller)


async def test_a_file_that_cannot_be_used_starts_nothing(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A service that was meant to have keys never opens without them."""
    with pytest.raises(InvalidKeysFile):
        async with open_auth(Settings(api_keys_file=tmp_path / "none"), FrontEndMetrics(registry)):
            pass
