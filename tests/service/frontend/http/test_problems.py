from __future__ import annotations

import pytest

from model.errors import BundleInvalid, ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from service.errors import (
    DOMAIN_ERRORS,
    BadParameter,
    BadRequest,
    DeadlineExceeded,
    FetchFailed,
    FetchTimeout,
    Forbidden,
    Internal,
    ModelInvalid,
    ModelNotFound,
    NotAcceptable,
    Overloaded,
    RateLimited,
    RetryLater,
    Unauthenticated,
    Unavailable,
    UnsupportedEncoding,
    UrlRefused,
)
from service.frontend.http.problems import ERROR_TABLE, error_response
from tests.service.frontend.rest_server import problem_of

CONTRACT: dict[type[ConvMLPError], int] = {
    ImageUndecodable: 400,
    UnsupportedFormat: 415,
    ImageTooLarge: 413,
    BadRequest: 400,
    UnsupportedEncoding: 415,
    NotAcceptable: 406,
    BadParameter: 422,
    ModelNotFound: 404,
    Unauthenticated: 401,
    Forbidden: 403,
    ModelInvalid: 422,
    UrlRefused: 422,
    FetchFailed: 502,
    FetchTimeout: 504,
    Overloaded: 503,
    RateLimited: 429,
    Unavailable: 503,
    DeadlineExceeded: 504,
    Internal: 500,
    BundleInvalid: 500,
}


def test_table_covers_every_domain_error() -> None:
    """No error that can reach this edge is without a row of its own."""
    assert set(ERROR_TABLE) == set(DOMAIN_ERRORS)


@pytest.mark.parametrize("kind", DOMAIN_ERRORS)
def test_every_error_has_the_contracts_status(kind: type[ConvMLPError]) -> None:
    """Each domain error becomes problem+json with the status that the contract gives it."""
    response = error_response(kind("what was wrong"), "/classify#1")
    problem = problem_of(bytes(response.body))
    assert response.status_code == problem["status"] == CONTRACT[kind]
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"/problems/{'internal' if kind is BundleInvalid else kind.code}"
    assert problem["instance"] == "/classify#1"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (30.0, "30")])
@pytest.mark.parametrize("kind", [kind for kind in DOMAIN_ERRORS if issubclass(kind, RetryLater)])
def test_retry_after_is_rounded_up_to_whole_seconds(kind: type[RetryLater], seconds: float, header: str) -> None:
    """Retry-After is never too short, and never 0."""
    assert error_response(kind("later", seconds), "/").headers["retry-after"] == header


def test_bundle_invalid_keeps_its_words_to_itself() -> None:
    """The message of a broken bundle names folders of the server, so callers do not see it."""
    response = error_response(BundleInvalid("bundle /srv/secret: config.json is not valid"), "/")
    assert b"secret" not in bytes(response.body)


def test_unauthenticated_names_a_scheme() -> None:
    """A 401 names the authentication scheme, as HTTP demands."""
    assert error_response(Unauthenticated("no token"), "/").headers["www-authenticate"] == "Bearer"


def test_unsupported_encoding_offers_others() -> None:
    """A 415 for a content coding names those that are decoded (RFC 9110, section 15.5.16)."""
    assert error_response(UnsupportedEncoding("br"), "/").headers["accept-encoding"] == "gzip, deflate"
