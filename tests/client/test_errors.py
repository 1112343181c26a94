"""The client's tree of errors against the service's own, over both transports."""

from __future__ import annotations

import pickle

import httpx2
import pytest

from convmlp_client.errors import SERVICE_ERRORS, ClientError, Internal, Overloaded, RetryLater
from convmlp_client.transport.grpc_errors import error_of_status
from convmlp_client.transport.rest import Received
from convmlp_client.transport.rest import error_of as error_of_http
from model.errors import BundleInvalid, ConvMLPError
from service import errors as domain
from service.frontend.grpc.status import status_of
from service.frontend.http.problems import error_response


def over_rest(error: ConvMLPError) -> ClientError:
    response = error_response(error, "/classify#an-id")
    headers = httpx2.Headers([*response.headers.items(), ("x-request-id", "an-id")])
    return error_of_http(Received(response.status_code, headers, bytes(response.body)), "http://host", "")


def over_grpc(error: ConvMLPError) -> ClientError:
    return error_of_status(status_of(error, "an-id"), "grpc://host", "")


@pytest.mark.parametrize("kind", domain.DOMAIN_ERRORS)
def test_every_error_of_the_service_has_its_class(kind: type[ConvMLPError]) -> None:
    """What the service tells comes out of either transport as the same error, with its words, time and id."""
    error = kind("these words", 2.0) if issubclass(kind, domain.RetryLater) else kind("these words")
    expected = Internal if kind is BundleInvalid else SERVICE_ERRORS[kind.code]
    for told in (over_rest(error), over_grpc(error)):
        assert type(told) is expected
        assert told.code == expected.code
        assert told.request_id == "an-id"
        assert told.retry_after_s == (2.0 if isinstance(told, RetryLater) else None)
        assert told.detail == str(told)
        if kind is not BundleInvalid:
            assert told.detail == "these words"


def test_the_service_has_no_error_that_the_client_does_not_know() -> None:
    """Neither has the client one that the service does not have."""
    assert set(SERVICE_ERRORS) == {kind.code for kind in domain.DOMAIN_ERRORS} - {BundleInvalid.code}


def test_errors_cross_processes() -> None:
    """A pool of processes gives errors back by pickling them."""
    error = Overloaded("busy", request_id="an-id", retry_after_s=3.0)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.detail, again.request_id, again.retry_after_s) == (Overloaded, "busy", "an-id", 3.0)
