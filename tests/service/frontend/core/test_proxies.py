"""Which address is a caller's, by what trusted proxies add and others may forge."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.frontend.core.proxies import MAX_HOPS, TrustedProxies, trusted_proxies
from service.settings import Settings

PROXY, INNER, CALLER, FORGED = "10.0.0.1", "10.0.0.2", "203.0.113.7", "198.51.100.1"
PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:aaaa::/48"], "x-forwarded-for")
FORWARDED = TrustedProxies(["10.0.0.0/8", "2001:db8:aaaa::/48"], "forwarded")


@pytest.mark.parametrize(
    ("peer", "values", "caller"),
    [
        (PROXY, [CALLER], CALLER),
        (PROXY, [f"{FORGED}, {CALLER}"], CALLER),
        (PROXY, [f"{FORGED},{CALLER},{INNER}"], CALLER),
        (PROXY, [FORGED, CALLER], CALLER),
        (PROXY, [], PROXY),
        (PROXY, [""], PROXY),
        (PROXY, [INNER], INNER),
        (PROXY, [f"{CALLER}:5123"], CALLER),
        (PROXY, ["[2001:db8::7]:5123"], "2001:db8::7"),
        (PROXY, ["2001:db8::7"], "2001:db8::7"),
        (PROXY, [f"{CALLER}, unknown"], PROXY),
        (PROXY, [f"{CALLER}, garbage, {INNER}"], INNER),
        (f"::ffff:{PROXY}", [CALLER], CALLER),
        ("2001:db8:aaaa::1", [CALLER], CALLER),
        (CALLER, [FORGED], CALLER),
        ("local", [FORGED], "local"),
        (PROXY, [", ".join([CALLER, *[INNER] * (MAX_HOPS + 5)])], INNER),
    ],
)
def test_x_forwarded_for(peer: str, values: list[str], caller: str) -> None:
    """The caller is the last address that no trusted proxy has, whatever stands before it; else the peer itself."""
    assert PROXIES.caller(peer, values) == caller


@pytest.mark.parametrize(
    ("values", "caller"),
    [
        ([f"for={CALLER}"], CALLER),
        ([f"for={FORGED}, for={CALLER};proto=https;by={PROXY}"], CALLER),
        ([f"For={FORGED}", f"by=10.0.0.1;FOR={CALLER}"], CALLER),
        (['for="[2001:db8::7]:4711"'], "2001:db8::7"),
        ([f'for="{CALLER}:80";host="a,b;for={FORGED}"'], CALLER),
        ([f"for={CALLER}, for=_hidden, for={INNER}"], INNER),
        ([f"for={CALLER}, for=unknown"], PROXY),
        ([f"for={CALLER}, proto=https"], PROXY),
        ([f'for="{CALLER}'], PROXY),
        ([], PROXY),
    ],
)
def test_forwarded(values: list[str], caller: str) -> None:
    """The header of RFC 7239 is read the same way; a hidden or missing address ends what is known."""
    assert FORWARDED.caller(PROXY, values) == caller


def test_long_headers_cost_little() -> None:
    """A header of the largest size is answered as any other."""
    assert PROXIES.caller(PROXY, [f"{FORGED}," * 5000 + CALLER]) == CALLER
    assert FORWARDED.caller(PROXY, ['"' + "\\" * 60_000]) == PROXY


def test_without_proxies_no_header_is_believed() -> None:
    """The setting names networks; a malformed one is an error that quotes it."""
    assert trusted_proxies(Settings()) is None
    assert trusted_proxies(Settings(trusted_proxies="10.0.0.0/8, 192.0.2.1")) is not None
    with pytest.raises(ValidationError, match=r"10\.0\.0\.0/99"):
        Settings(trusted_proxies="10.0.0.0/99")
