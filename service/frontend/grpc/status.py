"""The one table of this edge: domain error → gRPC status, told with the details of google.rpc (AIP-193).

A call's own error is its status, with the details as `grpc-status-details-bin`; that of one message of a stream is
the same `google.rpc.Status` in its reply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Never

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest as FieldViolations
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from model.errors import BundleInvalid, ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from service.errors import (
    INTERNAL_DETAIL,
    BadParameter,
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    Internal,
    ModelNotFound,
    Overloaded,
    RateLimited,
    RetryLater,
    Unauthenticated,
    Unavailable,
)
from service.frontend.core.request_log import RequestRecord

DOMAIN = "convmlp.v1"
"""Of ErrorInfo: within it a reason names one kind of error, for good."""
MAX_MESSAGE = 1000
"""Characters. A status travels in headers, three times over, and clients take no more than 8 KiB of them."""
MIN_RETRY_S = 0.1
FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Those for which a server is to blame, by the semantic conventions of OpenTelemetry."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """`field` is the part of a request that is at fault. `tells`: whether the error's own words are for the caller."""

    code: grpc.StatusCode
    field: str | None = None
    tells: bool = True


ERROR_TABLE: dict[type[ConvMLPError], Row] = {
    ImageUndecodable: Row(grpc.StatusCode.INVALID_ARGUMENT, "image"),
    UnsupportedFormat: Row(grpc.StatusCode.INVALID_ARGUMENT, "image"),
    ImageTooLarge: Row(grpc.StatusCode.INVALID_ARGUMENT, "image"),
    BadRequest: Row(grpc.StatusCode.INVALID_ARGUMENT),
    BadParameter: Row(grpc.StatusCode.INVALID_ARGUMENT),
    ModelNotFound: Row(grpc.StatusCode.NOT_FOUND),
    Unauthenticated: Row(grpc.StatusCode.UNAUTHENTICATED),
    Forbidden: Row(grpc.StatusCode.PERMISSION_DENIED),
    Overloaded: Row(grpc.StatusCode.RESOURCE_EXHAUSTED),
    RateLimited: Row(grpc.StatusCode.RESOURCE_EXHAUSTED),
    Unavailable: Row(grpc.StatusCode.UNAVAILABLE),
    DeadlineExceeded: Row(grpc.StatusCode.DEADLINE_EXCEEDED),
    Internal: Row(grpc.StatusCode.INTERNAL),
    BundleInvalid: Row(grpc.StatusCode.INTERNAL, tells=False),
}


def status_of(error: ConvMLPError, request_id: str) -> Status:
    """What a caller is told: code, message and details."""
    row = _row_of(error)
    reason, message = (error.code, error.detail) if row.tells else (Internal.code, INTERNAL_DETAIL)
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE - 1]}…"
    details: list[Message] = [ErrorInfo(reason=reason.upper().replace("-", "_"), domain=DOMAIN)]
    field = error.field if isinstance(error, BadParameter) else row.field
    if field is not None:
        violation = FieldViolations.FieldViolation(field=field, description=message)
        details.append(FieldViolations(field_violations=[violation]))
    if isinstance(error, RetryLater):
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(_retry_ms(error))
        details.append(retry)
    details.append(RequestInfo(request_id=request_id))
    status = Status(code=row.code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


async def abort(context: Context, error: ConvMLPError, record: RequestRecord) -> Never:
    """End a call, whose record this is, with an error. Raises what ends the handler."""
    note(error, record)
    await refuse(context, error, record.request_id)


async def refuse(context: Context, error: ConvMLPError, request_id: str) -> Never:
    """End a call with an error. Raises what ends the handler."""
    status = rpc_status.to_status(status_of(error, request_id))
    metadata = [*status.trailing_metadata, ("x-request-id", request_id)]
    if isinstance(error, RetryLater):
        # What gRPC's own retries, where a client has them configured, wait for (gRFC A6).
        metadata.append(("grpc-retry-pushback-ms", str(_retry_ms(error))))
    await context.abort(status.code, status.details, tuple(metadata))


def note(error: ConvMLPError, record: RequestRecord) -> None:
    """Have a call, or a message of a stream, end with an error."""
    code = _row_of(error).code
    record.status, record.failed = code.name, code in FAILURES
    record.fail(error)


def _row_of(error: ConvMLPError) -> Row:
    """The table's row for an error, or for the nearest of its bases; else that of Internal."""
    return next((ERROR_TABLE[kind] for kind in type(error).__mro__ if kind in ERROR_TABLE), ERROR_TABLE[Internal])


def _retry_ms(error: RetryLater) -> int:
    return math.ceil(max(error.retry_after_s, MIN_RETRY_S) * 1000)
