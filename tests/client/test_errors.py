"""The client's error classes against the service's, over both transports."""

from __future__ import annotations

import pickle

import httpx2
import pytest

from convmlp_client.errors import SERVICE_ERRORS, ClientError, Internal, Overloaded, RetryLater
from convmlp_client.transport.grpc_errors import error_from_status
from convmlp_client.transport.rest import HttpResponse
from convmlp_client.transport.rest import error_from_response as error_of_http
from model.errors import BundleInvalid, ConvMLPError
from service import errors as domain
from service.frontend.grpc.status import status_of
from service.frontend.http.problems import error_response


def over_rest(error: ConvMLPError) -> ClientError:
    response = error_response(error, "/classify#an-id")
    headers = httpx2.Headers([*response.headers.items(), ("x-request-id", "an-id")])
    return error_of_http(HttpResponse(response.status_code, headers, bytes(response.body)), "http://host", "")


def over_grpc(error: ConvMLPError) -> ClientError:
    return error_from_status(status_of(error, "an-id"), "grpc://host", "")


@pytest.mark.parametrize("kind", domain.DOMAIN_ERRORS)
def test_each_error_of_the_service_has_a_class(kind: type[ConvMLPError]) -> None:
    """Each error becomes the same class over both transports, with its detail, Retry-After and request id."""
    error = kind("these words", 2.0) if issubclass(kind, domain.RetryLater) else kind("these words")
    expected = Internal if kind is BundleInvalid else SERVICE_ERRORS[kind.code]
    for received in (over_rest(error), over_grpc(error)):
        assert type(received) is expected
        assert received.code == expected.code
        assert received.request_id == "an-id"
        assert received.retry_after_s == (2.0 if isinstance(received, RetryLater) else None)
        assert received.detail == str(received)
        if kind is not BundleInvalid:
            assert received.detail == "these words"


def test_the_client_knows_exactly_the_errors_of_the_service() -> None:
    """The error codes of the client are those of the service."""
    assert set(SERVICE_ERRORS) == {kind.code for kind in domain.DOMAIN_ERRORS} - {BundleInvalid.code}


def test_errors_are_pickled() -> None:
    """An error keeps its type and fields when it is pickled, as by a process pool."""
    error = Overloaded("busy", request_id="an-id", retry_after_s=3.0)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.detail, again.request_id, again.retry_after_s) == (Overloaded, "busy", "an-id", 3.0)
