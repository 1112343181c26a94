"""What can go wrong between a picture and its answer.

ClientError
├── BadImage              empty, truncated or corrupt
├── UnsupportedFormat     not one of the formats that the service reads
├── TooLarge              too many bytes or pixels
├── BadRequest            the service could not understand the request
├── BadParameter          a parameter out of range, or a model of another task
├── NotFound              no such model
├── Unauthenticated       no or a wrong API key
├── Forbidden             the service is configured not to do this
├── DeadlineExceeded      the time given was not enough
├── Internal              something is wrong with the service itself
├── ProtocolError         what came is no answer of this service
├── ConnectionFailed      no answer came
└── RetryLater            not now; the same request may succeed later
    ├── Overloaded        the service has too much to do
    ├── RateLimited       one caller is over its own rate
    └── Unavailable       starting, draining, worker lost

Mistakes that never leave the caller's own process are Python's own: `TypeError` and `ValueError` for what is no
picture or no URL, `OSError` for a file that cannot be read, and `ClientClosed`, a `RuntimeError`.
"""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """Base of all errors that a request can end with.

    `code` is stable and is what the service calls the error; `detail` says in words what was wrong, what was
    expected, and what to do. `request_id` is what the service's log knows the request by, empty if it has none.
    `retry_after_s` is how long the service asked to be left alone, None where it did not ask.
    """

    code: str = "internal"
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed if it is sent again."""

    def __init__(self, detail: str, *, request_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def detail(self) -> str:
        return str(self.args[0])


class BadImage(ClientError):
    """The bytes are empty, truncated or corrupt."""

    code = "image-undecodable"


class UnsupportedFormat(ClientError):
    """The bytes are not of an image format that the service reads."""

    code = "unsupported-format"


class TooLarge(ClientError):
    """More bytes, or more pixels, than the service accepts."""

    code = "image-too-large"


class BadRequest(ClientError):
    """The service could not understand the request."""

    code = "bad-request"


class BadParameter(ClientError):
    """A parameter is out of its range, or the model does another task."""

    code = "bad-parameter"


class NotFound(ClientError):
    """The service has no such model, or none for the task."""

    code = "model-not-found"


class Unauthenticated(ClientError):
    """The service asks for an API key, and none or a wrong one came."""

    code = "unauthenticated"


class Forbidden(ClientError):
    """The service is configured not to do this, for anyone."""

    code = "forbidden"


class DeadlineExceeded(ClientError):
    """The answer did not come within the time that was given."""

    code = "deadline-exceeded"


class Internal(ClientError):
    """Something is wrong with the service itself; its log tells more under the request's id."""

    code = "internal"


class ProtocolError(ClientError):
    """What came is no answer of this service: something else listens there, or one of another version."""

    code = "protocol-error"


class ConnectionFailed(ClientError):
    """Nothing answers there, or the connection broke before the answer."""

    code = "connection-failed"
    retryable = True


class RetryLater(ClientError):
    """Not now: the same request may succeed after `retry_after_s` seconds."""

    code = "retry-later"
    retryable = True


class Overloaded(RetryLater):
    """A queue is full, or the deadline could not be met."""

    code = "overloaded"


class RateLimited(RetryLater):
    """One caller is over its own rate."""

    code = "rate-limited"


class Unavailable(RetryLater):
    """Starting, draining, or its worker was lost."""

    code = "unavailable"


class ClientClosed(RuntimeError):
    """The client was closed, before it was asked or before the answer came."""


SERVICE_ERRORS: dict[str, type[ClientError]] = {
    kind.code: kind
    for kind in (
        BadImage,
        UnsupportedFormat,
        TooLarge,
        BadRequest,
        BadParameter,
        NotFound,
        Unauthenticated,
        Forbidden,
        DeadlineExceeded,
        Internal,
        Overloaded,
        RateLimited,
        Unavailable,
    )
}
"""The errors that a service tells, by their code."""
