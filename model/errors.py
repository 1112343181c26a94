"""The domain errors. Each edge maps them once: `frontend/rest/errors.py`, `frontend/rpc/errors.py`.

    ConvMLPError
    ├── ImageUndecodable      empty, truncated or corrupt
    ├── UnsupportedFormat     not one of the formats we read
    ├── ImageTooLarge         too many bytes or too many pixels
    └── BundleInvalid         a model bundle that must not be served

`service/errors.py` adds the ones that only a running service can meet.
"""

from __future__ import annotations

from typing import ClassVar


class ConvMLPError(Exception):
    """Base of every error that a caller is told about.

    The message is written for the caller: what was wrong, what was expected, what to do. `code` is stable:
    it names the error across processes and in `problem+json`'s `type`.
    """

    code: ClassVar[str] = "internal"

    @property
    def detail(self) -> str:
        return str(self)


class ImageUndecodable(ConvMLPError):
    """The bytes are empty, truncated or corrupt."""

    code = "image-undecodable"


class UnsupportedFormat(ConvMLPError):
    """The bytes are not of an image format that the service reads."""

    code = "unsupported-format"


class ImageTooLarge(ConvMLPError):
    """More bytes, or more pixels, than the service accepts."""

    code = "image-too-large"


class BundleInvalid(ConvMLPError):
    """A bundle's files are missing, malformed or do not belong together."""

    code = "bundle-invalid"
