"""The setting that chooses the precision of each model; and the folder in which a choice is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def precisions(text: str, models: str = "a,b,c") -> list[str]:
    settings = Settings.model_validate({"models": models, "precision": text})
    again = Settings.model_validate({"models": models, "precision": settings.as_environment()["CONVMLP_PRECISION"]})
    assert again == settings
    return [settings.precision_of(name) for name in "abc"]


def test_a_precision_is_of_all_models_or_of_one() -> None:
    """One without a name is for all models that have none of their own, also in another process."""
    assert [Settings().precision_of(name) for name in "abc"] == ["auto"] * 3
    assert precisions("bf16") == ["bf16"] * 3
    assert precisions("fp32, b=bf16") == ["fp32", "bf16", "fp32"]
    assert precisions("b=exact,auto,c=fp16") == ["auto", "exact", "fp16"]
    assert precisions("b=exact") == ["auto", "exact", "auto"]


@pytest.mark.parametrize("text", ["", "fp64", "a=", "=fp32", "a=fp64", "fp32=a", "a=b=fp32"])
def test_anything_else_is_refused(text: str) -> None:
    """A precision that does not exist, or is for no model, is an error."""
    with pytest.raises(ValidationError):
        precisions(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fp32,bf16", "there are more than one; name one"),
        ("a=fp32,a=bf16", "'a' has more than one; name one"),
        ("d=fp32", "'d' is not a served model; served: a, b, c"),
    ],
)
def test_contradictions_are_errors(text: str, words: str) -> None:
    """Two precisions for the same models, or one for a model that is not served, name the fault."""
    with pytest.raises(ValidationError, match=words):
        precisions(text)
    if "d=" in text:
        assert Settings(models=("a",), precision=(text,), model_control=True).precision_of("d") == "fp32"


def test_the_state_folder_follows_the_xdg_base_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting wins over $XDG_STATE_HOME, which counts if it is absolute, and that over the home folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings(state_dir=Path("/elsewhere")).state_folder == Path("/elsewhere")
    assert Settings().state_folder == tmp_path / "convmlp"
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert Settings().state_folder == Path("/home/somebody/.local/state/convmlp")
