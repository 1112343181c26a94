"""The errors of this package.

ClientError
├── BadImage              the image bytes are empty, truncated or corrupt
├── UnsupportedFormat     the service does not read this image format
├── NotAcceptable         the service offers no media type that Accept names
├── UnsupportedEncoding   the service does not decode the body's Content-Encoding
├── TooLarge              the image has too many bytes or pixels
├── BadRequest            the service does not understand the request
├── BadParameter          a parameter is out of range, or the model serves another task
├── NotFound              no such model
├── ModelInvalid          a model cannot be loaded: its bundle is broken
├── Unauthenticated       the API key is missing or wrong
├── Forbidden             the service's configuration does not allow this
├── UrlRefused            the service does not fetch this URL of an image
├── FetchFailed           no image came from its URL
│   └── FetchTimeout      it did not come in time
├── DeadlineExceeded      the request timed out
├── Internal              the service failed
├── ProtocolError         the reply is not from this service, or from another version of it
├── ConnectionFailed      cannot connect, or the connection broke
└── RetryLater            the same request may succeed later
    ├── Overloaded        the service is at capacity
    ├── RateLimited       the caller exceeds its own rate limit
    └── Unavailable       the service is starting or stopping, or lost its worker

Mistakes on the caller's side are Python's own errors: `TypeError` and `ValueError` for an argument that is not an image
or not a URL, `OSError` for a file that cannot be read, and `ClientClosed` (a `RuntimeError`) for a closed client.
"""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """Base class of the errors of a request.

    `code` is the service's stable name of the error. `detail` names what was wrong, what was expected, and what to do.
    `request_id` identifies the request in the service's log; it is empty if the service gave none.
    `retry_after_s` is the pause in seconds that the service asks for; None if it does not ask for one.
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
    """The image bytes are empty, truncated or corrupt."""

    code = "image-undecodable"


class UnsupportedFormat(ClientError):
    """The service does not read this image format."""

    code = "unsupported-format"


class NotAcceptable(ClientError):
    """The service offers no media type that the header Accept names. The client names JSON, so a proxy changed it."""

    code = "not-acceptable"


class UnsupportedEncoding(ClientError):
    """The service does not decode the body's Content-Encoding."""

    code = "unsupported-encoding"


class TooLarge(ClientError):
    """The image has more bytes or pixels than the service accepts."""

    code = "image-too-large"


class BadRequest(ClientError):
    """The service does not understand the request."""

    code = "bad-request"


class BadParameter(ClientError):
    """A parameter is out of range, or the model serves another task."""

    code = "bad-parameter"


class NotFound(ClientError):
    """The service has no model of this name, or none for the task."""

    code = "model-not-found"


class ModelInvalid(ClientError):
    """A model cannot be loaded: its bundle is broken, or does not give its committed answer."""

    code = "model-invalid"


class Unauthenticated(ClientError):
    """The API key is missing or wrong."""

    code = "unauthenticated"


class Forbidden(ClientError):
    """The service's configuration does not allow this to any caller."""

    code = "forbidden"


class UrlRefused(ClientError):
    """The service does not fetch this URL of an image: by its settings, or by the addresses of the URL's host."""

    code = "url-refused"


class FetchFailed(ClientError):
    """The host of an image's URL cannot be reached from the service, or answers with an error."""

    code = "fetch-failed"


class FetchTimeout(FetchFailed):
    """The image did not come from its URL in the time that a fetch may take."""

    code = "fetch-timeout"


class DeadlineExceeded(ClientError):
    """The request timed out."""

    code = "deadline-exceeded"


class Internal(ClientError):
    """The service failed. Its log has the cause under the request's id."""

    code = "internal"


class ProtocolError(ClientError):
    """The reply is not from this service, or from another version of it."""

    code = "protocol-error"


class ConnectionFailed(ClientError):
    """The client cannot connect, or the connection broke before the reply was complete."""

    code = "connection-failed"
    retryable = True


class RetryLater(ClientError):
    """The same request may succeed after `retry_after_s` seconds."""

    code = "retry-later"
    retryable = True


class Overloaded(RetryLater):
    """The service is at capacity: its queue is full, or it cannot meet the deadline."""

    code = "overloaded"


class RateLimited(RetryLater):
    """The caller exceeds its own rate limit."""

    code = "rate-limited"


class Unavailable(RetryLater):
    """The service is starting or stopping, or lost its worker."""

    code = "unavailable"


class ClientClosed(RuntimeError):
    """The client was closed before the request, or before its reply."""


SERVICE_ERRORS: dict[str, type[ClientError]] = {
    kind.code: kind
    for kind in (
        BadImage,
        UnsupportedFormat,
        UnsupportedEncoding,
        NotAcceptable,
        TooLarge,
        BadRequest,
        BadParameter,
        NotFound,
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
}
"""The error classes of the service's error codes."""
