from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from convmlp_client.fonts import PACKAGED, Fonts
from convmlp_client.geometry import ImageSize
from convmlp_client.results import Classification, Label, Meta, Task
from tests.client.font_writer import write_font

PACKAGED_LETTERS = ("é", "ü", "ß", "ñ", "ł", "к", "Ω", "ق", "א", "…")
CAT = "猫"
INDEX = (("#7", PACKAGED),)


def drawn(name: str, index: int = 0) -> bytes:
    """The text of a single label on a black image, as its grey pixels: the swatch has the label's colour."""
    result = Classification(ImageSize(200, 60), (Label(name, index, 0.5),), Meta("model", Task.CLASSIFY))
    pixels = np.asarray(result.draw(PIL.Image.new("RGB", (200, 60))))
    return np.where(np.ptp(pixels, axis=2) == 0, pixels[..., 0], 0).tobytes()


@pytest.mark.parametrize("letter", PACKAGED_LETTERS)
def test_letters_beyond_ascii_are_packaged(letter: str) -> None:
    """The packaged font has these letters: names with them are drawn as they are, wherever the client is installed."""
    assert Fonts([], shaping=True).legible(f"a {letter}", 3) == ((f"a {letter}", PACKAGED),)


def test_letters_are_drawn_as_themselves() -> None:
    """On an image no two letters look alike. So none is the box that stands for missing ones."""
    pictures = {letter: drawn(letter) for letter in (*PACKAGED_LETTERS[:7], "e", "#0", "\u25a1")}
    for one, other in itertools.combinations(pictures, 2):
        assert pictures[one] != pictures[other], (one, other)


def test_a_name_without_a_font_is_its_class_index() -> None:
    """If no font has a letter of the name, the class index stands for it."""
    assert Fonts([]).legible(f"cat {CAT}", 7) == INDEX


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\x1bb", "\ud800"])
def test_a_name_that_is_no_text_is_its_class_index(name: str) -> None:
    """Empty names, control characters and lone surrogates are replaced by the class index, without an error."""
    assert Fonts([]).legible(name, 7) == INDEX
    assert drawn(name, 7) == drawn("#7", 7)


@pytest.mark.parametrize(("name", "text"), [("cafe\u0301", "caf\u00e9"), ("a\n b\tc ", "a b c")])
def test_names_are_normalised(name: str, text: str) -> None:
    """A letter and its combining mark become one letter where Unicode has one; white space becomes one space."""
    assert Fonts([], shaping=False).legible(name, 0) == ((text, PACKAGED),)


def test_fonts_of_the_system_have_other_letters(tmp_path: Path) -> None:
    """A font in a subfolder is used for the names whose letters only it has. Other files are passed over."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "notes.txt").write_text(CAT)
    font = write_font(tmp_path / "cjk" / "Regular.ttf", f"{CAT}a")
    fonts = Fonts([tmp_path / "missing", tmp_path])
    assert fonts.legible(f"{CAT} a", 7) == ((f"{CAT} a", font),)
    assert fonts.legible("a", 7) == (("a", PACKAGED),)
    assert fonts.legible(f"{CAT}犬", 7) == INDEX


def test_one_font_with_all_letters_is_preferred_to_several(tmp_path: Path) -> None:
    """A name is drawn in one font where one has its letters, else each letter in a font that has it."""
    write_font(tmp_path / "a.ttf", f"{CAT}")
    both = write_font(tmp_path / "b.ttf", f"고{CAT}")
    write_font(tmp_path / "d.ttf", "犬")
    fonts = Fonts([tmp_path])
    assert fonts.legible(CAT, 7) == ((CAT, tmp_path / "a.ttf"),)
    assert fonts.legible(f"{CAT}고", 7) == ((f"{CAT}고", both),)
    mixed = (("cat ", PACKAGED), (f"{CAT} ", tmp_path / "a.ttf"), ("犬", tmp_path / "d.ttf"))
    assert fonts.legible(f"cat {CAT} 犬", 7) == mixed


def test_plain_fonts_are_preferred(tmp_path: Path) -> None:
    """Of fonts with the same letters a plain one is used before bold and italic ones."""
    for name in ("A-Bold.ttf", "A-Italic.ttf", "A-Regular.ttf"):
        write_font(tmp_path / name, f"{CAT}")
    assert Fonts([tmp_path]).legible(CAT, 7)[0][1].name == "A-Regular.ttf"


@pytest.mark.parametrize("name", ["قطة", "חתול", "x\u0323\u0302", "क्ष"])
def test_without_shaping_scripts_that_need_it_are_not_drawn(name: str, tmp_path: Path) -> None:
    """Without Raqm, text from right to left and combining marks would be drawn wrongly, so the index is drawn."""
    write_font(tmp_path / "all.ttf", f"{name}")
    assert [text for text, _ in Fonts([tmp_path], shaping=True).legible(name, 7)] == [name]
    assert Fonts([tmp_path], shaping=False).legible(name, 7) == INDEX


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of the user's fonts are those of Linux")
def test_the_users_folder_is_searched(tmp_path: Path) -> None:
    """A font in the user's folder of fonts is drawn with, without any setting: white squares, as the font has them."""
    write_font(tmp_path / "fonts" / "cat.ttf", f"{CAT}", side=900)
    code = """
import sys, numpy, PIL.Image
from convmlp_client.drawing import draw_labels
from convmlp_client.results import Label
canvas = PIL.Image.new("RGB", (400, 300))
draw_labels(canvas, [Label(sys.argv[1], 0, 0.5)])
canvas.save(sys.argv[2])
"""
    for folder, name in ((tmp_path, "found.png"), (tmp_path / "none", "missing.png")):
        environment = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_DATA_DIRS": str(tmp_path / "none")}
        subprocess.run([sys.executable, "-c", code, CAT, str(tmp_path / name)], env=environment, check=True, timeout=60)
    found, missing = (
        (np.asarray(PIL.Image.open(tmp_path / name)) == 255).all(axis=2).sum() for name in ("found.png", "missing.png")
    )
    # A square of 0.9 em, at an em of 12 pixels.
    assert found > 8 * 8 > missing
