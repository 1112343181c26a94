"""Domain errors of a running service; `model/errors.py` has those of images and bundles.

ConvMLPError
├── BadRequest            a body that cannot be parsed
├── UnsupportedEncoding   a body whose Content-Encoding is unknown
├── NotAcceptable         no media type that the caller accepts is offered
├── BadParameter          a parameter out of range, or a model of another task
├── ModelNotFound
├── ModelInvalid          a model of the store that cannot be served
├── Unauthenticated       no or wrong credentials
├── Forbidden             the service's settings do not allow it
├── UrlRefused            a picture's URL that is not fetched
├── FetchFailed           a picture's URL from which no picture came
│   └── FetchTimeout      it did not come in time
├── DeadlineExceeded      the request's deadline passed
├── Internal              anything else: a request id and no internals
└── RetryLater            not possible now; has the time after which to try again
    ├── Overloaded        a queue is full, or the deadline cannot be met
    ├── RateLimited       one caller is over its own rate
    └── Unavailable       starting, draining, worker lost
"""

from __future__ import annotations

from enum import StrEnum

from model.errors import BundleInvalid, ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat

INTERNAL_DETAIL = "internal error; the service's log has the details under this request's id"

MODEL_CONTROL_OFF = (
    "this service does not let callers load, unload or split models; its operator can allow it with the setting "
    "model_control"
)
"""The detail of Forbidden where a change of the models is requested."""


class BadRequest(ConvMLPError):
    """The body is not in a form that the endpoint accepts: malformed multipart, malformed JSON, no image."""

    code = "bad-request"


class UnsupportedEncoding(ConvMLPError):
    """The body has a content coding that is not decoded."""

    code = "unsupported-encoding"


class NotAcceptable(ConvMLPError):
    """The caller accepts none of the media types that an answer can have."""

    code = "not-acceptable"


class BadParameter(ConvMLPError):
    """A parameter is out of range, or the model is for another task. `field` is the parameter's name, if known."""

    code = "bad-parameter"

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class ModelNotFound(ConvMLPError):
    code = "model-not-found"


class ModelInvalid(ConvMLPError):
    """A model that shall be loaded has a broken bundle, or does not give its committed answer."""

    code = "model-invalid"


class Unauthenticated(ConvMLPError):
    code = "unauthenticated"


class Forbidden(ConvMLPError):
    """The service's settings do not allow this for any caller."""

    code = "forbidden"


class UrlRefused(ConvMLPError):
    """A picture's URL that the service does not fetch: by its settings, or by the addresses of the URL's host."""

    code = "url-refused"


class FetchFailed(ConvMLPError):
    """The host of a picture's URL cannot be reached, or answers with an error."""

    code = "fetch-failed"


class FetchTimeout(FetchFailed):
    """The picture did not come in the time that a fetch may take."""

    code = "fetch-timeout"


class DeadlineExceeded(ConvMLPError):
    code = "deadline-exceeded"


class Internal(ConvMLPError):
    """A fault of the service itself. The message contains no internals; the log has them."""

    code = "internal"


class RetryLater(ConvMLPError):
    """The same request may succeed after `retry_after_s` seconds."""

    code = "retry-later"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Refusal(StrEnum):
    """Why a prediction was refused although its images are valid; a label of `convmlp_rejected_total`."""

    CREDENTIALS = "credentials"
    """The API key is missing or wrong."""
    RATE = "rate"
    """The caller exceeds its rate."""
    BODIES = "bodies"
    """The front-end's limit of request bytes is reached."""
    IN_FLIGHT = "in_flight"
    """The front-end's limit of images in progress is reached."""
    QUEUE = "queue"
    """The worker's queue is full, the deadline cannot be met, or the device is out of memory."""
    MEMORY = "memory"
    """The front-end has no memory to decode the image."""
    DEADLINE = "deadline"
    """The deadline passed."""
    UNAVAILABLE = "unavailable"
    """Starting, draining, worker lost, model not ready."""
    CONNECTIONS = "connections"
    """The front-end's limit of connections is reached."""


class ConnectionEnd(StrEnum):
    """Why the HTTP server ended a connection by itself; a label of `convmlp_connections_ended_total`."""

    MALFORMED = "malformed"
    """What it sent is not HTTP."""
    HEAD_TOO_LARGE = "head_too_large"
    """A request line and headers without an end."""
    HEAD_TIMEOUT = "head_timeout"
    """No complete request line and headers in time."""
    PIPELINED = "pipelined"
    """It sent too many requests without waiting for their answers."""
    UNREAD = "unread"
    """It did not read its answers."""
    LIMIT = "limit"
    """It was idle, or in the reserve, while the limit of connections was reached."""
    HANDSHAKE = "handshake"
    """Its TLS handshake failed, or did not end in time."""


class Overloaded(RetryLater):
    """`reason` is for the metrics. It is not sent between processes: only the worker's own reason crosses."""

    code = "overloaded"

    def __init__(self, detail: str, retry_after_s: float = 1.0, reason: Refusal = Refusal.QUEUE) -> None:
        super().__init__(detail, retry_after_s)
        self.reason = reason


def too_late(expected_s: float, retry_after_s: float) -> Overloaded:
    """The answer is expected in `expected_s` seconds, after the request's deadline."""
    return Overloaded(
        f"an answer would take {expected_s:.1f} s now, more than the request's deadline allows", retry_after_s
    )


class RateLimited(RetryLater):
    code = "rate-limited"


class Unavailable(RetryLater):
    code = "unavailable"


DOMAIN_ERRORS: tuple[type[ConvMLPError], ...] = (
    ImageUndecodable,
    UnsupportedFormat,
    ImageTooLarge,
    BundleInvalid,
    BadRequest,
    UnsupportedEncoding,
    NotAcceptable,
    BadParameter,
    ModelNotFound,
    ModelInvalid,
    Unauthenticated,
    Forbidden,
    UrlRefused,
    FetchFailed,
    FetchTimeout,
    DeadlineExceeded,
    Internal,
    Overloaded,
    RateLimited,
    Unavailable,
)
"""Every error that can reach a transport. Each transport's table has a row for each; a test checks it."""

_BY_CODE = {error.code: error for error in DOMAIN_ERRORS}


def error_from_code(code: str, detail: str, retry_after_s: float | None = None) -> ConvMLPError:
    """The domain error with this code, as received from another process; an unknown code gives `Internal`."""
    kind = _BY_CODE.get(code, Internal)
    if issubclass(kind, RetryLater):
        return kind(detail, 1.0 if retry_after_s is None else retry_after_s)
    return kind(detail)


def error_of_part(error: ConvMLPError, part: str) -> ConvMLPError:
    """The error of a request, one part of which failed with `error`; `part` names it."""
    detail = f"{part}: {error.detail}"
    if isinstance(error, Overloaded):
        return Overloaded(detail, error.retry_after_s, error.reason)
    retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
    of_part = error_from_code(error.code, detail, retry_after_s)
    return of_part.with_advice(http=error.http_advice, grpc=error.grpc_advice)
