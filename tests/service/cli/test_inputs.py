from __future__ import annotations

from pathlib import Path

import pytest
import typer

from service.cli.inputs import ImageFile, image_files, output_paths


@pytest.mark.parametrize("url", ["ftp://example.org/cat.jpg", "file:///srv/cat.jpg", "s3://bucket/*.jpg"])
def test_a_url_of_another_scheme(url: str) -> None:
    """It is no name of a file: the error names the schemes that are downloaded."""
    with pytest.raises(typer.BadParameter, match="only http:// and https:// URLs"):
        image_files([url])


def test_one_drawing_is_written_to_the_named_file(tmp_path: Path) -> None:
    """The suffix may be in upper or lower case."""
    assert output_paths(str(tmp_path / "out.PNG"), [ImageFile("cat.jpg")]) == [tmp_path / "out.PNG"]


def test_drawings_in_a_folder_are_named_after_their_images(tmp_path: Path) -> None:
    """They are PNG files; the one of stdin is named so."""
    images = [ImageFile("a/cat.jpg"), ImageFile("b/dog.webp"), ImageFile("-")]
    expected = [tmp_path / "cat.png", tmp_path / "dog.png", tmp_path / "stdin.png"]
    assert output_paths(str(tmp_path), images) == expected
    assert output_paths(f"{tmp_path}/new/", images[:1]) == [tmp_path / "new/cat.png"]


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
def test_a_drawing_overwrites_no_image(save: str, names: list[str], why: str) -> None:
    """A path of unknown format, or of an image or another drawing, is refused before anything is read."""
    with pytest.raises(typer.BadParameter, match=why):
        output_paths(save, [ImageFile(name) for name in names])
