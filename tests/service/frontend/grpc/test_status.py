from __future__ import annotations

import grpc
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
from service.frontend.grpc.status import ERROR_TABLE, MAX_MESSAGE, status_of
from tests.service.frontend.grpc_server import field, reason, request_id, retry_s

CONTRACT: dict[type[ConvMLPError], grpc.StatusCode] = {
    ImageUndecodable: grpc.StatusCode.INVALID_ARGUMENT,
    UnsupportedFormat: grpc.StatusCode.INVALID_ARGUMENT,
    ImageTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnsupportedEncoding: grpc.StatusCode.INVALID_ARGUMENT,
    NotAcceptable: grpc.StatusCode.INVALID_ARGUMENT,
    BadParameter: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    ModelInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    UrlRefused: grpc.StatusCode.INVALID_ARGUMENT,
    FetchFailed: grpc.StatusCode.FAILED_PRECONDITION,
    FetchTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Internal: grpc.StatusCode.INTERNAL,
    BundleInvalid: grpc.StatusCode.INTERNAL,
}


def test_table_covers_every_domain_error() -> None:
    """Every domain error has its own row."""
    assert set(ERROR_TABLE) == set(DOMAIN_ERRORS)


@pytest.mark.parametrize("kind", DOMAIN_ERRORS)
def test_every_error_has_the_contracts_code(kind: type[ConvMLPError]) -> None:
    """Each domain error has the contract's status code, and its own reason."""
    status = status_of(kind("what was wrong"), "abc")
    assert status.code == CONTRACT[kind].value[0]
    assert request_id(status) == "abc"
    if kind is BundleInvalid:
        assert reason(status) == "INTERNAL"
    else:
        assert status.message == "what was wrong"
        assert reason(status) == kind.code.upper().replace("-", "_")


def test_reasons_are_unique() -> None:
    """The reasons of any two errors differ, although many share a code."""
    reasons = [reason(status_of(kind(""), "")) for kind in DOMAIN_ERRORS if kind is not BundleInvalid]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("kind", DOMAIN_ERRORS)
def test_retry_info(kind: type[ConvMLPError]) -> None:
    """RetryInfo comes with the errors that a retry may solve, and with no other."""
    assert (retry_s(status_of(kind(""), "")) is not None) == issubclass(kind, RetryLater)


@pytest.mark.parametrize(("seconds", "delay_s"), [(0.0, 0.1), (0.2, 0.2), (1.2345, 1.235), (30.0, 30.0)])
def test_retry_delay_is_never_too_short(seconds: float, delay_s: float) -> None:
    """The delay of RetryInfo is never shorter than the wait, and never 0."""
    assert retry_s(status_of(Overloaded("later", seconds), "")) == delay_s


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImageUndecodable("cut off"), "image"),
        (UnsupportedFormat("a PDF"), "image"),
        (ImageTooLarge("huge"), "image"),
        (BadParameter("out of range", "top_k"), "top_k"),
        (BadParameter("all of it"), None),
        (BadRequest("all of it"), None),
        (ModelNotFound("none"), None),
    ],
)
def test_the_field_at_fault_is_named(error: ConvMLPError, expected: str | None) -> None:
    """BadRequest names the message's field at fault, if there is one."""
    assert field(status_of(error, "")) == expected


def test_bundle_invalid_has_no_public_message() -> None:
    """The error of an invalid bundle names the server's folders, so its message is replaced."""
    status = status_of(BundleInvalid("bundle /srv/secret: config.json is not valid"), "")
    assert b"secret" not in status.SerializeToString()


def test_messages_are_bounded() -> None:
    """A long message is cut, because clients drop a call whose headers exceed a few KiB."""
    status = status_of(BadParameter("x" * 10_000, "model"), "i" * 128)
    assert len(status.message) == MAX_MESSAGE
    assert status.message.endswith("x…")
    assert len(status.SerializeToString()) < 4096
