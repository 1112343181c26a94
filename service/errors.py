"""Domain errors that only a running service can meet; `model/errors.py` has those of images and bundles.

ConvMLPError
├── BadRequest            a body that cannot be understood
├── BadParameter          a parameter out of range, or a model of another task
├── ModelNotFound
├── Unauthenticated       no or wrong credentials
├── Forbidden             the service is configured not to do this
├── DeadlineExceeded      the caller's deadline passed
├── Internal              anything else: a request id and no internals
└── RetryLater            the service is not able now, and says when to come back
    ├── Overloaded        a queue is full, or the deadline cannot be met
    ├── RateLimited       one caller is over its own rate
    └── Unavailable       starting, draining, worker lost
"""

from __future__ import annotations

from enum import StrEnum

from model.errors import BundleInvalid, ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat


class BadRequest(ConvMLPError):
    """The body is not one of the forms that the endpoint takes: broken multipart, broken JSON, no image."""

    code = "bad-request"


class BadParameter(ConvMLPError):
    """A parameter is out of its range, or the model does another task. `field` is the parameter's name, if one."""

    code = "bad-parameter"

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class ModelNotFound(ConvMLPError):
    code = "model-not-found"


class Unauthenticated(ConvMLPError):
    code = "unauthenticated"


class Forbidden(ConvMLPError):
    """The service is configured not to do this, for anyone."""

    code = "forbidden"


class DeadlineExceeded(ConvMLPError):
    code = "deadline-exceeded"


class Internal(ConvMLPError):
    """Something is wrong with the service itself. The message names no internals; the log has them."""

    code = "internal"


INTERNAL_DETAIL = "an internal error happened; the service's log tells more under the id of this request"


class RetryLater(ConvMLPError):
    """The same request may succeed after `retry_after_s` seconds."""

    code = "retry-later"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Refusal(StrEnum):
    """Why a prediction is refused though nothing is wrong with its images; a label of `convmlp_rejected_total`."""

    CREDENTIALS = "credentials"
    """No API key came, or a wrong one."""
    RATE = "rate"
    """Its caller is over its own rate."""
    BODIES = "bodies"
    """The front-end holds as many bytes of requests as it may."""
    IN_FLIGHT = "in_flight"
    """The front-end has as many images in hand as it may."""
    QUEUE = "queue"
    """The worker's queue is full, or takes longer than the deadline allows, or the device has no memory left."""
    DEADLINE = "deadline"
    """The deadline passed."""
    UNAVAILABLE = "unavailable"
    """Starting, draining, worker lost, model not ready."""


class Overloaded(RetryLater):
    """`reason` says what was full, for the metrics; it does not cross processes, for only the worker's own does."""

    code = "overloaded"

    def __init__(self, detail: str, retry_after_s: float = 1.0, reason: Refusal = Refusal.QUEUE) -> None:
        super().__init__(detail, retry_after_s)
        self.reason = reason


def too_late(expected_s: float, retry_after_s: float) -> Overloaded:
    """An answer is expected only in `expected_s`, after the request's deadline."""
    return Overloaded(
        f"an answer would take {expected_s:.1f} s now, longer than the request's deadline allows", retry_after_s
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
    BadParameter,
    ModelNotFound,
    Unauthenticated,
    Forbidden,
    DeadlineExceeded,
    Internal,
    Overloaded,
    RateLimited,
    Unavailable,
)
"""Every error that can reach an edge. Each edge's table must have a row for each (a test says so)."""

_BY_CODE = {error.code: error for error in DOMAIN_ERRORS}


def error_from_code(code: str, detail: str, retry_after_s: float | None = None) -> ConvMLPError:
    """The domain error that crossed a process as its code; an unknown code is an `Internal`."""
    kind = _BY_CODE.get(code, Internal)
    if issubclass(kind, RetryLater):
        return kind(detail, 1.0 if retry_after_s is None else retry_after_s)
    return kind(detail)
