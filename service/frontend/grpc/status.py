"""Domain error → gRPC status with the details of google.rpc (AIP-193): the one table of this transport.

A call's error is its status, with the details as `grpc-status-details-bin`. The error of one message of a stream is the
same `google.rpc.Status` in the message's reply.
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
from service.frontend.core.request_log import RequestRecord

DOMAIN = "convmlp.v1"
"""The domain of ErrorInfo, within which a reason always means the same error."""
MAX_MESSAGE = 1000
"""Characters. Headers carry the message three times, and clients accept at most 8 KiB of headers."""
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
"""Status codes that mean a failure of the server, by OpenTelemetry's semantic conventions."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class StatusRow:
    """`field` is the request's field at fault. `public`: callers see the error's own detail."""

    code: grpc.StatusCode
    field: str | None = None
    public: bool = True


ERROR_TABLE: dict[type[ConvMLPError], StatusRow] = {
    ImageUndecodable: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, "image"),
    UnsupportedFormat: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, "image"),
    ImageTooLarge: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, "image"),
    BadRequest: StatusRow(grpc.StatusCode.INVALID_ARGUMENT),
    UnsupportedEncoding: StatusRow(grpc.StatusCode.INVALID_ARGUMENT),
    NotAcceptable: StatusRow(grpc.StatusCode.INVALID_ARGUMENT),
    BadParameter: StatusRow(grpc.StatusCode.INVALID_ARGUMENT),
    ModelNotFound: StatusRow(grpc.StatusCode.NOT_FOUND),
    ModelInvalid: StatusRow(grpc.StatusCode.FAILED_PRECONDITION),
    Unauthenticated: StatusRow(grpc.StatusCode.UNAUTHENTICATED),
    Forbidden: StatusRow(grpc.StatusCode.PERMISSION_DENIED),
    UrlRefused: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, "image_url"),
    FetchFailed: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, "image_url"),
    FetchTimeout: StatusRow(grpc.StatusCode.DEADLINE_EXCEEDED, "image_url"),
    Overloaded: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED),
    RateLimited: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED),
    Unavailable: StatusRow(grpc.StatusCode.UNAVAILABLE),
    DeadlineExceeded: StatusRow(grpc.StatusCode.DEADLINE_EXCEEDED),
    Internal: StatusRow(grpc.StatusCode.INTERNAL),
    BundleInvalid: StatusRow(grpc.StatusCode.INTERNAL, public=False),
}


def status_of(error: ConvMLPError, request_id: str) -> Status:
    """Code, message and details for the caller."""
    row = _row_of(error)
    reason, message = (error.code, error.grpc_detail) if row.public else (Internal.code, INTERNAL_DETAIL)
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


async def abort(context: Context, error: ConvMLPError, request_id: str) -> Never:
    """End a call with an error. Raises an exception that ends the handler."""
    status = rpc_status.to_status(status_of(error, request_id))
    metadata = [*status.trailing_metadata, ("x-request-id", request_id)]
    if isinstance(error, RetryLater):
        # gRPC's own retries, where a client configures them, wait for this long (gRFC A6).
        metadata.append(("grpc-retry-pushback-ms", str(_retry_ms(error))))
    await context.abort(status.code, status.details, tuple(metadata))


def record_error(error: ConvMLPError, record: RequestRecord) -> None:
    """Set the outcome of a call, or of a message of a stream, that ends with an error."""
    code = _row_of(error).code
    record.status, record.failed = code.name, code in FAILURES
    record.fail(error)


def _row_of(error: ConvMLPError) -> StatusRow:
    """The row of an error, or of its nearest base class; else that of Internal."""
    return next((ERROR_TABLE[kind] for kind in type(error).__mro__ if kind in ERROR_TABLE), ERROR_TABLE[Internal])


def _retry_ms(error: RetryLater) -> int:
    return math.ceil(max(error.retry_after_s, MIN_RETRY_S) * 1000)
