"""What has come so far of a file that is being downloaded: `FILE.part`, and in `FILE.part.json` of which version.

Bytes are appended only to a part whose version the server confirms (RFC 9110, section 13.1.5), so that two versions
of a file are never glued together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import NonNegativeInt, ValidationError

from model.spec import Spec

_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
_STRONG_TAG = re.compile(r'"[!#-~]*"')


class Version(Spec):
    """One version of a file, as its server tells them apart. Only strong validators are kept."""

    url: str
    total: NonNegativeInt | None
    etag: str | None
    last_modified: str | None

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str]) -> Self:
        """The version that a whole answer (200) with these headers, named in lower case, carries."""
        length = _LENGTH.fullmatch(headers.get("content-length", ""))
        tag = _STRONG_TAG.fullmatch(headers.get("etag", ""))
        modified = headers.get("last-modified", "")
        age_s = seconds_between(modified, headers.get("date", ""))
        return cls(
            url=url,
            # Chunks overrule a length (RFC 9112, section 6.3).
            total=int(length[0]) if length and "transfer-encoding" not in headers else None,
            etag=tag[0] if tag else None,
            # Else the file may have changed again within the same second (RFC 9110, section 8.8.2.2).
            last_modified=modified if age_s is not None and age_s >= 1 and modified.isascii() else None,
        )

    @property
    def validator(self) -> str | None:
        return self.etag or self.last_modified

    def continued_total(self, headers: Mapping[str, str], size: int) -> int | None:
        """The file's length, if a partial answer (206) is the rest of this version from byte `size` on; else None."""
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if found is None or int(found[1]) != size or self.total not in (None, int(found[2])):
            return None
        if self.etag is not None:
            same = headers.get("etag") == self.etag
        else:  # an answer to If-Range may leave the date out, not the tag (RFC 9110, section 15.3.7)
            same = headers.get("last-modified", self.last_modified) == self.last_modified
        return int(found[2]) if same else None


class PartFile:
    """The part that belongs to `target`; of `url`, else it counts as empty. Methods raise OSError."""

    def __init__(self, target: Path, url: str) -> None:
        self._target = target
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self._version_path = target.with_name(f"{target.name}.part.json")
        self.version = self._read_version()

    @property
    def size(self) -> int:
        """Bytes at hand of `version`."""
        return self.path.stat().st_size if self.version is not None and self.path.exists() else 0

    @property
    def complete(self) -> bool:
        return self.version is not None and self.version.total == self.size > 0

    @property
    def resumable(self) -> bool:
        return self.version is not None and self.version.validator is not None and self.size > 0

    def range_headers(self) -> dict[str, str]:
        """Headers that ask for the rest, if the file is still the same one; none where all must come anew."""
        if self.version is None or self.version.validator is None or self.size == 0:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.version.validator}

    def continued_total(self, headers: Mapping[str, str]) -> int | None:
        """The file's length, if a partial answer (206) goes on where the part ends; else None."""
        return self.version.continued_total(headers, self.size) if self.version is not None else None

    def begin(self, version: Version) -> None:
        """Forget what there is; from now on the part is of `version`."""
        self.discard()
        # In this order: a part without a version, or one of a torn file, counts as empty.
        self._version_path.write_text(version.model_dump_json())
        self.version = version

    def open(self) -> BinaryIO:
        """To append."""
        return self.path.open("ab")

    def discard(self) -> None:
        self._version_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.version = None

    def move_to_target(self) -> None:
        """The part becomes `target`, on stable storage before it has that name."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self._target)
        self._version_path.unlink(missing_ok=True)
        self.version = None

    def _read_version(self) -> Version | None:
        try:
            version = Version.model_validate_json(self._version_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return version if version.url == self.url else None


def seconds_between(earlier: str, later: str) -> float | None:
    """From one HTTP date to another; None where one is no date."""
    try:
        return (parsedate_to_datetime(later) - parsedate_to_datetime(earlier)).total_seconds()
    except (ValueError, TypeError, ArithmeticError):  # of a date with a zone and one without, a TypeError
        return None
