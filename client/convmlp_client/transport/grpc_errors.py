"""Errors from gRPC: the service's `google.rpc.Status` with details, and statuses of gRPC itself or of proxies."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from convmlp_client.errors import (
    SERVICE_ERRORS,
    BadRequest,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    Internal,
    NotFound,
    Overloaded,
    ProtocolError,
    TooLarge,
    Unauthenticated,
)
from convmlp_client.transport import cannot_connect

DOMAIN = "convmlp.v1"
DETAILS_KEY = "grpc-status-details-bin"

NOT_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")
"""Beginnings of gRPC's texts where there is no connection."""
REFUSED = "Failed to connect to remote host: "
"""Stands before the system's words in them."""

ERRORS_WITHOUT_DETAILS: Mapping[int, type[ClientError]] = {
    Code.CANCELLED: ConnectionFailed,
    Code.INVALID_ARGUMENT: BadRequest,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.NOT_FOUND: NotFound,
    Code.PERMISSION_DENIED: Forbidden,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNIMPLEMENTED: ProtocolError,
    Code.UNAVAILABLE: ConnectionFailed,
}
"""The errors of statuses without the service's details. All other codes become Internal."""


def error_from_call(error: grpc.aio.AioRpcError, address: str, request_id: str) -> ClientError:
    """The error of a failed call."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return error_from_status(Status.FromString(value), address, request_id)
            except DecodeError:
                break
    number: int = error.code().value[0]
    return error_from_status(Status(code=number, message=error.details() or ""), address, request_id)


def error_from_status(status: Status, address: str, request_id: str) -> ClientError:
    """The error of a status. A status without the service's details is from gRPC, a proxy, or another service."""
    info, retry, request = ErrorInfo(), RetryInfo(), RequestInfo()
    unpacked = {type(message) for message in (info, retry, request) if _unpack(status, message)}
    code = info.reason.lower().replace("_", "-") if info.domain == DOMAIN else ""
    if code in SERVICE_ERRORS:
        error_type, detail = SERVICE_ERRORS[code], status.message
    else:
        error_type, detail = _type_without_details(status), _detail_without_details(status, address)
    error = error_type(
        detail,
        request_id=request.request_id or request_id,
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000 if RetryInfo in unpacked else None,
    )
    if code:
        error.code = code
    return error


def _type_without_details(status: Status) -> type[ClientError]:
    # gRPC uses the same code for a message that is too long and for a service at capacity.
    if status.code == Code.RESOURCE_EXHAUSTED and "larger than max" in status.message:
        return TooLarge
    return ERRORS_WITHOUT_DETAILS.get(status.code, Internal)


def _detail_without_details(status: Status, address: str) -> str:
    if status.message.startswith(NOT_CONNECTED):
        *_, reason = status.message.rpartition(REFUSED)
        return cannot_connect(address, reason if reason == status.message else reason.lower())
    return f"{address}: {status.message or Code.Name(status.code)}"


def _unpack(status: Status, message: Message) -> bool:
    try:
        return any(detail.Unpack(message) for detail in status.details)
    except DecodeError:
        return False
