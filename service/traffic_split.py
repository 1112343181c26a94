"""Which versions of a model answer requests for its plain name: the share of each, in percent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from model.model_name import base_name, is_version

TrafficSplit = Mapping[str, float]
"""Percent of the requests by version: `{"1": 90, "2": 10}`. They sum to 100. An empty one: the default version, which
is the first that was served, answers all of them."""

ALL = 100.0
MAX_VERSIONS = 16
TOLERANCE = 1e-6
"""Percentages are decimal fractions, whose sums are not exact."""

EXPECTED = "expected VERSION:PERCENT,VERSION:PERCENT such as 1:90,2:10"
_PERCENT = re.compile(r"\d{1,3}(?:\.\d{1,4})?")


def parse_split(text: str) -> dict[str, float]:
    """The split of one name: `1:90,2:10`, or `2` for all requests to version 2.

    Raises:
        ValueError: the text has another form, or `check_split` refuses it.
    """
    return _parse([part.strip() for part in text.split(",")])


def parse_splits(parts: Iterable[str]) -> dict[str, TrafficSplit]:
    """Splits by model name, from `NAME=1:90,2:10` cut at its commas, one name after the other.

    Raises:
        ValueError: a part has another form, a name occurs twice, or `check_split` refuses a split.
    """
    by_name: dict[str, list[str]] = {}
    name = ""
    for part in parts:
        before, equals, share = part.partition("=")
        if equals:
            name, part = before.strip(), share
            if not name or base_name(name) != name:
                raise ValueError(f"split: {before!r} is not the name of a model without its version")
            if name in by_name:
                raise ValueError(f"split: {name!r} has more than one split; give one")
            by_name[name] = []
        if not name:
            raise ValueError(f"split: {part!r} does not begin with the name of a model; expected NAME=1:90,2:10")
        by_name[name].append(part.strip())
    splits: dict[str, TrafficSplit] = {}
    for name, shares in by_name.items():
        try:
            splits[name] = _parse(shares)
        except ValueError as error:
            raise ValueError(f"split of {name!r}: {error}") from None
    return splits


def check_split(split: TrafficSplit) -> None:
    """Raises ValueError: a key is no version, a percentage is not above 0, or they do not sum to 100."""
    if len(split) > MAX_VERSIONS:
        raise ValueError(f"{len(split)} versions; expected at most {MAX_VERSIONS}")
    for version, percent in split.items():
        if not is_version(version):
            raise ValueError(f"{version[:20]!r} is not a version; {EXPECTED}")
        if not 0 < percent <= ALL:  # NaN is neither
            raise ValueError(f"version {version} has {percent:g} %; expected more than 0 and at most 100")
    total = sum(split.values())
    if split and abs(total - ALL) > TOLERANCE:
        raise ValueError(f"the percentages sum to {total:g}; expected 100")


def split_text(split: TrafficSplit) -> str:
    """A split as `parse_split` reads it."""
    return ",".join(f"{version}:{percent:g}" for version, percent in split.items())


def _parse(shares: list[str]) -> dict[str, float]:
    if len(shares) == 1 and is_version(shares[0]):
        return {shares[0]: ALL}
    split: dict[str, float] = {}
    for share in shares:
        version, _, percent = share.partition(":")
        if not is_version(version) or not _PERCENT.fullmatch(percent):
            raise ValueError(f"{share[:40]!r} is not a share; {EXPECTED}")
        if version in split:
            raise ValueError(f"version {version} has two shares; give one")
        split[version] = float(percent)
    check_split(split)
    return split
