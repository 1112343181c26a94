from __future__ import annotations

from pathlib import Path

import pytest

from service.evaluation.dataset import DataInvalid
from service.evaluation.label_matching import mask_value_indices, match_labels, read_label_map

MODEL = ("Maine Coon", "pug", "tench, fish")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["pug", "Maine Coon"], [1, 0]),
        (["maine_coon", "PUG", "tench,_fish"], [0, 1, 2]),
        (["2", "0"], [2, 0]),
        (["n02000002", "n01000001", "n03000003"], [1, 0, 2]),
    ],
)
def test_labels_match_by_name_number_or_wordnet_id(labels: list[str], expected: list[int]) -> None:
    """Names match without regard to case and `_`; numbers are indices; a full set of WordNet ids is in their order."""
    assert list(match_labels(labels, MODEL).values()) == expected


def test_numbers_that_are_names_match_as_names() -> None:
    """A model of digits whose labels are in another order."""
    assert match_labels(["0", "1"], ("1", "0")) == {"0": 1, "1": 0}


def test_a_map_renames_and_leaves_out(tmp_path: Path) -> None:
    """By label or index of the model; null, or an empty cell of CSV, leaves a label out. Two may have one class."""
    (tmp_path / "map.json").write_text('{"mops": "pug", "dog": 1, "car": null}')
    (tmp_path / "map.csv").write_text("mops,pug\ndog,1\ncar,\n")
    for name in ("map.json", "map.csv"):
        label_map = read_label_map(tmp_path / name)
        found = match_labels(["mops", "dog", "car", "Maine Coon"], MODEL, label_map)
        assert found == {"mops": 1, "dog": 1, "car": None, "Maine Coon": 0}


def test_labels_that_do_not_match_are_listed() -> None:
    """The error has the first differences of both sides, and what to do."""
    with pytest.raises(DataInvalid) as caught:
        match_labels(["pug", "poodle", "beagle"], MODEL)
    assert "does not have: 'poodle', 'beagle';" in caught.value.detail
    assert "does not have: 'Maine Coon', 'tench, fish';" in caught.value.detail
    assert "--map FILE" in caught.value.detail
    with pytest.raises(DataInvalid, match="2 WordNet ids match only a model with as many classes"):
        match_labels(["n02000002", "n01000001"], MODEL)
    with pytest.raises(DataInvalid, match="both match 'pug'"):
        match_labels(["pug", "Pug"], MODEL)
    with pytest.raises(DataInvalid, match="the label 'poodle', which the model does not have"):
        match_labels(["x"], MODEL, {"x": "poodle"})
    with pytest.raises(DataInvalid, match="the class 3; the model's are 0 to 2"):
        match_labels(["x"], MODEL, {"x": 3})


def test_values_of_masks() -> None:
    """A value is its class, unless it is ignored or the map has another."""
    assert mask_value_indices(255, {"1": "b", "7": 0}, ("a", "b")) == {"0": 0, "1": 1, "255": None, "7": 0}
