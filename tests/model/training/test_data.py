from __future__ import annotations

from pathlib import Path

import pytest

from model.training.data import read_index


def edit(pets: Path, old: str, new: str, *, header: bool = False) -> Path:
    """Replace a text in the rows of an index, or in its header."""
    first, *rows = (pets / "index.csv").read_text().splitlines(keepends=True)
    first, rows = (first.replace(old, new), rows) if header else (first, [row.replace(old, new) for row in rows])
    (pets / "index.csv").write_text("".join([first, *rows]))
    return pets


def test_an_index_has_its_records_by_fold_and_its_breeds_names(pets: Path) -> None:
    """A fifth is held out; breeds are named in the order of their numbers."""
    index = read_index(pets)
    assert (len(index.training()), len(index.held_out())) == (8, 2)
    assert index.breeds == ("Some Cat", "some dog")


@pytest.mark.parametrize(
    ("old", "new", "header", "why"),
    [
        ("species,", "animal,", True, "lacks the columns species; the data set's README describes them"),
        (",cat,", ",bird,", False, r"line 2: the species is 'bird'; expected one of cat, dog"),
        (",48,", ",tall,", False, r"line 2: invalid literal for int\(\) with base 10: 'tall'"),
        (",2,10,", ",3,10,", False, "breed_id must count from 1 without gaps"),
        (",0,", ",1,", False, "0 of 10 photographs are in fold 0, which is held out; expected some there"),
    ],
)
def test_an_index_that_is_not_valid_is_refused(old: str, new: str, header: bool, why: str, pets: Path) -> None:
    """The error has the file, the line and what was expected."""
    edit(pets, old, new, header=header)
    with pytest.raises(ValueError, match=rf"index\.csv.*{why}"):
        read_index(pets)
