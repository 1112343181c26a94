"""Domain errors of images and bundles. Each transport maps them to its own status codes in one table.

    ConvMLPError
    ├── ImageUndecodable      empty, truncated or corrupt
    ├── UnsupportedFormat     not one of the formats we read
    ├── ImageTooLarge         too many bytes or pixels, or decoding would take too much memory or work
    ├── OutOfMemory           no memory to decode an image now
    ├── BundleInvalid         a model bundle that must not be served
    └── NotFinite             a network's output has NaN or infinity

`service/errors.py` adds those of a running service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class ConvMLPError(Exception):
    """Base of every error that a caller sees.

    The message addresses the caller: what is wrong, what is expected, what to do. `code` is stable: it identifies the
    error across processes and in the `type` of `problem+json`.
    """

    code: ClassVar[str] = "internal"

    http_advice = grpc_advice = ""
    """What callers of one transport can do, and those of the other cannot."""

    @property
    def detail(self) -> str:
        """The message, without advice for one transport."""
        return str(self)

    @property
    def http_detail(self) -> str:
        return f"{self}; {self.http_advice}" if self.http_advice else str(self)

    @property
    def grpc_detail(self) -> str:
        return f"{self}; {self.grpc_advice}" if self.grpc_advice else str(self)

    def with_advice(self, *, http: str = "", grpc: str = "") -> Self:
        """This error, with advice for callers of each transport."""
        self.http_advice, self.grpc_advice = http, grpc
        return self


class ImageUndecodable(ConvMLPError):
    """The bytes are empty, truncated or corrupt."""

    code = "image-undecodable"


class UnsupportedFormat(ConvMLPError):
    """The bytes are in no image format that is supported."""

    code = "unsupported-format"


class ImageTooLarge(ConvMLPError):
    """The image has more bytes or pixels than the limits allow, or decoding it would take more memory or work."""

    code = "image-too-large"


class OutOfMemory(ConvMLPError):
    """The process has no memory to decode the image now. The image is not at fault."""

    code = "out-of-memory"


class BundleInvalid(ConvMLPError):
    """A bundle's files are missing, malformed or do not belong together."""

    code = "bundle-invalid"


class NotFinite(ConvMLPError):
    """A network's output for one image has NaN or infinity. For callers it is an internal error, whose code it has."""

    def __init__(self) -> None:
        super().__init__(
            "the model's output for this image is not finite (NaN or infinity): its weights are damaged, or too large "
            "for its precision"
        )


def problem_text(problem: ErrorDetails) -> str:
    """What is wrong with a value. Checks that raise ValueError have a prefix in pydantic's text, which is left out."""
    return problem["msg"].removeprefix("Value error, ")
