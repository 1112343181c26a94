"""Fonts for drawn text: the packaged one, and those of the system for letters that it lacks.

DejaVu Sans 2.37 is packaged. It has the letters of Latin, Greek, Cyrillic, Hebrew, Arabic and some smaller scripts, not
those of Chinese, Japanese, Korean and of India.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import PIL.features
import PIL.ImageFont

PACKAGED: Final = Path(__file__).parent / "font_files" / "DejaVuSans.ttf"
SUFFIXES: Final = (".ttf", ".otf", ".ttc", ".otc")
STYLED: Final = ("bold", "italic", "oblique", "light", "thin", "black", "heavy", "mono", "condensed", "serif", "emoji")
"""Fonts with such a word in their names come last."""
MAX_LISTED: Final = 8192
MAX_FONTS: Final = 256
"""So many files of the system are listed, and of these so many are opened."""
RIGHT_TO_LEFT: Final = ("R", "AL", "AN")
MARKS: Final = ("Mn", "Mc", "Me", "Cf")
"""Classes of Unicode: directions of writing; combining marks, and letters that steer the layout."""
TEST_SIZE: Final = 16
UNASSIGNED: Final = "\uffff"
"""No font has a glyph for this code point, so it is drawn as the box that stands for missing glyphs."""

Glyph = tuple[tuple[int, int], bytes]
"""Width and height in pixels, and the grey levels."""
Piece = tuple[str, Path]
"""Text, and the font file that has its letters."""


class Fonts:
    """The packaged font, and the font files in folders and their subfolders. May be used from several threads.

    `shaping`: Pillow lays out text with Raqm, which combining marks and text from right to left need.
    """

    def __init__(self, folders: Sequence[Path], *, shaping: bool | None = None) -> None:
        self._folders = folders
        self._shaping = PIL.features.check("raqm") if shaping is None else shaping
        self._pieces_of = lru_cache(maxsize=4096)(self._find_pieces_of)
        self._first_with = lru_cache(maxsize=16384)(self._find_first_with)
        self._files = lru_cache(maxsize=1)(self._list_files)

    def legible(self, name: str, index: int) -> tuple[Piece, ...]:
        """The name of a class as it can be drawn, in pieces from left to right; `#index` if a letter is in no font."""
        return self._pieces_of(" ".join(unicodedata.normalize("NFC", name).split())) or ((f"#{index}", PACKAGED),)

    def _find_pieces_of(self, name: str) -> tuple[Piece, ...] | None:
        """One piece, in the first font with all letters of a name, or several; None if a letter is in no font, or if
        Pillow cannot lay them out."""
        categories = {letter: unicodedata.category(letter) for letter in name}
        if not name or not {"Cc", "Cs"}.isdisjoint(categories.values()):
            return None
        needs_shaping = any(_needs_shaping(letter) for letter in categories)
        if needs_shaping and not self._shaping:
            return None
        letters = [letter for letter in categories if not _is_invisible(letter)]
        missing = _missing_from(PACKAGED, letters)
        if not missing:
            return ((name, PACKAGED),)
        fonts = {letter: self._first_with(letter) for letter in missing}
        likely = [path for path in fonts.values() if path is not None]
        if len(likely) < len(missing):
            return None
        whole = next((path for path in (*likely, *self._files()) if not _missing_from(path, letters)), None)
        if whole is not None:
            return ((name, whole),)
        if needs_shaping:  # the pieces could be in another order than their letters
            return None
        pieces: list[Piece] = []
        for letter in name:
            font = fonts.get(letter) or PACKAGED
            if pieces and (font == pieces[-1][1] or _is_invisible(letter)):
                pieces[-1] = pieces[-1][0] + letter, pieces[-1][1]
            else:
                pieces.append((letter, font))
        return tuple(pieces)

    def _find_first_with(self, letter: str) -> Path | None:
        return next((path for path in self._files() if not _missing_from(path, [letter])), None)

    def _list_files(self) -> list[Path]:
        files: list[Path] = []
        for folder in self._folders:
            for parent, folders, names in os.walk(folder):
                folders.sort()
                files += (Path(parent, name) for name in sorted(names) if name.lower().endswith(SUFFIXES))
                if len(files) >= MAX_LISTED:
                    break
        files.sort(key=lambda path: sum(word in path.stem.lower() for word in STYLED))
        return files[:MAX_FONTS]


def system_folders() -> list[Path]:
    """Where this system keeps fonts; the user's own come first."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without an entry in the password file, and no HOME
        home = Path("/")
    if sys.platform == "win32":
        return [home / "AppData/Local/Microsoft/Windows/Fonts", Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    own = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [Path(own, "fonts"), home / ".fonts", *(Path(folder, "fonts") for folder in shared.split(":") if folder)]


def _missing_from(path: Path, letters: Sequence[str]) -> list[str]:
    """Those letters for which a font file has no glyph; all of them if it cannot be read."""
    try:
        # Without shaping one letter is one glyph.
        font = PIL.ImageFont.truetype(path, TEST_SIZE, layout_engine=PIL.ImageFont.Layout.BASIC)
        box = _glyph(font, UNASSIGNED)
        return [letter for letter in letters if _glyph(font, letter) == box]
    except OSError:
        return list(letters)


def _glyph(font: PIL.ImageFont.FreeTypeFont, letter: str) -> Glyph:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _needs_shaping(letter: str) -> bool:
    """Whether neighbours or the direction of writing decide how a letter is drawn."""
    return unicodedata.bidirectional(letter) in RIGHT_TO_LEFT or unicodedata.category(letter) in MARKS


def _is_invisible(letter: str) -> bool:
    """Whether a letter draws nothing, so that it needs no glyph: space, and what only steers the layout."""
    return letter.isspace() or unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


SYSTEM_FONTS: Final = Fonts(system_folders())
