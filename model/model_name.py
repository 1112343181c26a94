"""Names of models and their versions: `NAME`, or `NAME@VERSION` with a whole number.

Version 1 of a model is written without its version: the model `pets` is its version 1, and `pets@1` means the same.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

MAX_NAME = 64
MAX_VERSION_DIGITS = 9
MAX_LENGTH = MAX_NAME + 1 + MAX_VERSION_DIGITS
"""Characters of a name with its version."""

FIRST_VERSION = "1"
SEPARATOR = "@"

VERSION_PATTERN = rf"[1-9][0-9]{{0,{MAX_VERSION_DIGITS - 1}}}"
_NAME = rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME - 1}}}"
_is_version = re.compile(VERSION_PATTERN).fullmatch

# Each version has one name: version 1 has no suffix.
_MODEL_NAME = rf"^{_NAME}(@([2-9]|[1-9][0-9]{{1,{MAX_VERSION_DIGITS - 1}}}))?$"
_is_name = re.compile(_MODEL_NAME).fullmatch

ModelName = Annotated[str, StringConstraints(pattern=_MODEL_NAME)]
EXPECTED_NAME = (
    "expected 1 to 64 of a-z, 0-9, '.', '_', '-', a letter or digit first, and for a further version @ and its number, "
    "such as name@2"
)


def is_name(text: str) -> bool:
    """Whether a model or a version of one can have this name. `pets@1` is none: it is `pets`."""
    return _is_name(text) is not None


def is_version(text: str) -> bool:
    """Whether a text is a version: a whole number from 1 on, of at most nine digits."""
    return _is_version(text) is not None


def canonical_name(reference: str) -> str:
    """The one name of what `NAME` or `NAME@VERSION` means: `pets@1` is `pets`."""
    return reference.removesuffix(SEPARATOR + FIRST_VERSION)


def base_name(reference: str) -> str:
    """The name without a version."""
    return reference.partition(SEPARATOR)[0]


def version_of(reference: str) -> str:
    """The version that a name means: `1` where it has none."""
    return reference.partition(SEPARATOR)[2] or FIRST_VERSION


def versioned_name(name: str, version: str) -> str:
    """The name of a model's version. `name` has no version."""
    return canonical_name(f"{name}{SEPARATOR}{version}")
