"""The setting that shares the device out between models."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_weights_are_named_numbers() -> None:
    """`a=2,b=.5` means 2 for a and 0.5 for b, also in another process."""
    settings = Settings.model_validate({"models": "a,b,c", "model_weights": "a=2, b=.5"})
    assert settings.weights == {"a": 2.0, "b": 0.5}
    assert settings.as_environment()["CONVMLP_MODEL_WEIGHTS"] == "a=2,b=.5"
    assert Settings().weights == {}


@pytest.mark.parametrize("text", ["a", "a=", "a=two", "a=-1", "=2", "a=1=2=", "a=nan", "a=inf"])
def test_anything_else_is_refused(text: str) -> None:
    """A weight that is not a name and a number is an error."""
    with pytest.raises(ValidationError):
        Settings(models=("a",), model_weights=(text,))


def test_a_weight_must_be_positive() -> None:
    """A weight of 0 is an error: its model would never run."""
    with pytest.raises(ValidationError, match="the weight of 'a' is 0; expected a number above 0"):
        Settings(models=("a",), model_weights=("a=0",))


def test_a_weight_is_of_a_model_that_is_served() -> None:
    """An unknown model's weight is an error that lists the served ones; with model control it is accepted."""
    with pytest.raises(ValidationError, match="'c' is not a served model; served: a, b"):
        Settings(models=("a", "b"), model_weights=("c=2",))
    assert Settings(models=("a",), model_weights=("c=2",), model_control=True).weights == {"c": 2.0}
