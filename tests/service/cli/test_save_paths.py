from __future__ import annotations

from pathlib import Path

import pytest
import typer

from service.cli.pictures import Picture, output_paths


def test_one_picture_goes_to_the_file_that_is_named(tmp_path: Path) -> None:
    """A name with a known suffix, in whatever case, is the file."""
    assert output_paths(str(tmp_path / "out.PNG"), [Picture("cat.jpg")]) == [tmp_path / "out.PNG"]


def test_a_folder_takes_each_picture_by_its_own_name(tmp_path: Path) -> None:
    """Drawings in a folder are PNG files named after their pictures; stdin has a name too."""
    pictures = [Picture("a/cat.jpg"), Picture("b/dog.webp"), Picture("-")]
    expected = [tmp_path / "cat.png", tmp_path / "dog.png", tmp_path / "stdin.png"]
    assert output_paths(str(tmp_path), pictures) == expected
    assert output_paths(f"{tmp_path}/new/", pictures[:1]) == [tmp_path / "new/cat.png"]


@pytest.mark.parametrize(
    ("save", "names", "why"),
    [
        ("out.png", ["a.jpg", "b.jpg"], "one file for 2 images"),
        ("out.tiff", ["a.jpg"], "does not end with one of .png"),
        ("out", ["a.jpg"], "does not end with one of .png"),
        ("folder/", ["a/cat.jpg", "b/cat.png"], "would overwrite"),
        ("folder/", ["folder/cat.png"], "would overwrite"),
        ("./a.png", ["a.png"], "would overwrite"),
    ],
)
def test_no_picture_is_lost_by_drawing(save: str, names: list[str], why: str) -> None:
    """What would overwrite an input or another drawing, or has no known format, is refused before anything is done."""
    with pytest.raises(typer.BadParameter, match=why):
        output_paths(save, [Picture(name) for name in names])
