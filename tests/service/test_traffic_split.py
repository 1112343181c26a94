"""How shares of versions are written, in settings and on the command line."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import Settings
from service.traffic_split import parse_split, parse_splits, split_text

TWO = ("pets", "pets@2", "heads")


def test_a_split_is_read_as_it_is_written() -> None:
    """Percentages may have decimals; a version alone gets all requests."""
    assert parse_split("1:90,2:10") == {"1": 90, "2": 10}
    assert parse_split("1:99.5, 12:0.5") == {"1": 99.5, "12": 0.5}
    assert parse_split("2") == {"2": 100}
    assert parse_split(split_text({"1": 33.3, "2": 66.7})) == {"1": 33.3, "2": 66.7}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1:90,2:9", "sum to 99; expected 100"),
        ("1:90,2:20", "sum to 110"),
        ("1:50,1:50", "two shares"),
        ("1:100,2:0", "more than 0"),
        ("one:50,2:50", "is not a share; expected VERSION:PERCENT"),
        ("1:90,2", "'2' is not a share"),
        ("0:100", "is not a share"),
        ("1:nan", "is not a share"),
        ("1:1e2", "is not a share"),
        ("1:-10,2:110", "is not a share"),
        ("", "is not a share"),
    ],
)
def test_a_split_that_leaves_a_request_in_doubt_is_refused(text: str, reason: str) -> None:
    """The error has what was wrong."""
    with pytest.raises(ValueError, match=reason):
        parse_split(text)


def test_several_models_have_splits_in_one_setting() -> None:
    """Commas separate shares and models, as in an environment variable."""
    parts = ("pets=1:90", "2:10", "heads=3")
    assert parse_splits(parts) == {"pets": {"1": 90, "2": 10}, "heads": {"3": 100}}


def test_the_setting_passes_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that `serve` starts reads the same splits and models; version 1 has one name."""
    settings = Settings(models=("pets@1", "pets@2", "heads"), split=("pets=1:90", "2:10", "heads=1"))
    assert settings.models == TWO
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    again = Settings()
    assert again == settings
    assert again.splits == {"pets": {"1": 90, "2": 10}, "heads": {"1": 100}}


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("pets=1:90,3:10", "version 3 of 'pets' is not a served model; add pets@3 to models"),
        ("dogs=1", "version 1 of 'dogs' is not a served model; add dogs to models"),
        ("pets=1:90", "split of 'pets': the percentages sum to 90"),
        ("pets@2=1:100", "'pets@2' is not the name of a model without its version"),
        ("1:90,2:10", "does not begin with the name of a model; expected NAME=1:90,2:10"),
        ("pets=1,pets=2", "more than one split"),
    ],
)
def test_a_wrong_split_ends_the_start(split: str, reason: str) -> None:
    """A service with a share for nobody does not start."""
    with pytest.raises(ValidationError, match=reason):
        Settings(models=TWO, split=split)
