from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import BundleConfig, read_bundle
from model.errors import BundleInvalid
from model.zoo.export import export_checkpoint
from model.zoo.importer import import_checkpoint
from model.zoo.palette import read_palette
from tests.model.tiny_models import NUM_CLASSES, tiny_bundle, tiny_network

COLOURS = tuple((index, 2 * index, 255 - index) for index in range(NUM_CLASSES))
TENSORS = tiny_network("semantic_fpn").state_dict()


def saved(folder: Path, meta: object, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    torch.save({"meta": meta, "state_dict": tensors}, folder / "mine.pth")
    return folder / "mine.pth"


def imported(folder: Path, file: Path, palette: tuple[tuple[int, int, int], ...] | None = None) -> BundleConfig:
    import_checkpoint(file, folder / "store", "mine", palette=palette)
    return read_bundle(folder / "store" / "mine").config


@pytest.mark.parametrize(
    "meta",
    [
        {"PALETTE": [list(colour) for colour in COLOURS]},
        {"PALETTE": COLOURS},
        {"dataset_meta": {"palette": [list(colour) for colour in COLOURS]}},
        {"dataset_meta": {"PALETTE": COLOURS}},
        {"PALETTE": np.array(COLOURS)},
        {"dataset_meta": {"palette": np.array(COLOURS, np.uint8)}},
    ],
)
def test_a_toolboxs_palette_is_kept(tmp_path: Path, meta: dict[str, object]) -> None:
    """As mmcv and mmengine store it; an array of NumPy, as mmsegmentation makes where a data set has none, too."""
    notes: list[str] = []
    import_checkpoint(saved(tmp_path, meta), tmp_path / "store", "mine", on_note=notes.append)
    assert read_bundle(tmp_path / "store" / "mine").config.palette == COLOURS
    assert any(note.startswith(f"palette: {NUM_CLASSES} colours (meta.") for note in notes)


@pytest.mark.parametrize("meta", [{}, {"PALETTE": None}, {"dataset_meta": {"palette": "random"}}, {"PALETTE": "coco"}])
def test_without_colours_there_is_no_palette(tmp_path: Path, meta: dict[str, object]) -> None:
    """None, and the name of a palette, are none: drawings have the colours of the labels."""
    assert imported(tmp_path, saved(tmp_path, meta)).palette is None


@pytest.mark.parametrize("meta", [{"PALETTE": COLOURS[:3]}, {"dataset_meta": {"palette": [*COLOURS, (1, 2, 3)]}}])
def test_a_wrong_count_is_an_error_with_both_counts(tmp_path: Path, meta: dict[str, object]) -> None:
    """Of the file and of the flag; a right palette given with the flag replaces the file's."""
    file = saved(tmp_path, meta)
    found = 3 if "PALETTE" in meta else NUM_CLASSES + 1
    with pytest.raises(BundleInvalid, match=rf"has {NUM_CLASSES} classes, and the palette {found} colours .*--palette"):
        imported(tmp_path, file)
    with pytest.raises(BundleInvalid, match=rf"has {NUM_CLASSES} classes, and the palette 2 colours \(as given\)"):
        imported(tmp_path, file, COLOURS[:2])
    assert imported(tmp_path, file, COLOURS).palette == COLOURS


@pytest.mark.parametrize(
    "palette",
    [
        [[0, 0, 300]] * NUM_CLASSES,
        [[0, 0]] * NUM_CLASSES,
        [[0.5, 0.5, 0.5]] * NUM_CLASSES,
        np.zeros((NUM_CLASSES, 3)),
        np.zeros((NUM_CLASSES, 4), np.uint8),
        {"cat": [0, 0, 0]},
        7,
    ],
)
def test_colours_that_are_none_are_refused(tmp_path: Path, palette: object) -> None:
    """Levels beyond 255, fractions, other numbers of channels: the error has what was expected, and the flag."""
    with pytest.raises(BundleInvalid, match=r"has a meta\.PALETTE that cannot be read; expected .*--palette FILE"):
        imported(tmp_path, saved(tmp_path, {"PALETTE": palette}))


@pytest.mark.parametrize("family", ["semantic_fpn", "classifier"])
def test_an_export_keeps_the_palette(tmp_path: Path, family: str) -> None:
    """Export and import give the same colours and version; mmcv's own key has them, and none is written without one."""
    bundle = tiny_bundle(tmp_path, family)
    export_checkpoint(bundle, tmp_path / "plain.pth")
    first = import_checkpoint(tmp_path / "plain.pth", tmp_path / "store", "mine")
    assert first.config.palette is None
    second = import_checkpoint(tmp_path / "plain.pth", tmp_path / "store", "mine", palette=COLOURS)
    assert second.config.version != first.config.version
    export_checkpoint(second, tmp_path / "coloured.pth")
    third = import_checkpoint(tmp_path / "coloured.pth", tmp_path / "store", "mine")
    assert (third.config.palette, third.config.version) == (COLOURS, second.config.version)
    if family == "semantic_fpn":
        meta = torch.load(tmp_path / "coloured.pth", weights_only=True)["meta"]
        assert meta["PALETTE"] == [list(colour) for colour in COLOURS]
        assert "PALETTE" not in torch.load(tmp_path / "plain.pth", weights_only=True)["meta"]


def test_a_single_channels_colour_is_its_classs(tmp_path: Path) -> None:
    """One colour of a network with one output channel: the rest is black. Two colours stay as they are."""
    tensors = {key: value[:1] if "conv_seg" in key else value for key, value in TENSORS.items()}
    assert imported(tmp_path, saved(tmp_path, {"PALETTE": [[9, 8, 7]]}, tensors)).palette == ((0, 0, 0), (9, 8, 7))
    file = saved(tmp_path, {"PALETTE": [[1, 1, 1], [9, 8, 7]]}, tensors)
    assert imported(tmp_path, file).palette == ((1, 1, 1), (9, 8, 7))


def test_a_bundle_without_a_palette_keeps_its_version(tmp_path: Path) -> None:
    """Configs that are older than palettes have the version that they had; a palette of another length is refused."""
    bundle = tiny_bundle(tmp_path, "semantic_fpn")
    config = json.loads((bundle.folder / "config.json").read_text())
    del config["palette"]
    (bundle.folder / "config.json").write_text(json.dumps(config))
    assert read_bundle(bundle.folder).config.version == bundle.config.version
    (bundle.folder / "config.json").write_text(json.dumps({**config, "palette": [[0, 0, 0]]}))
    with pytest.raises(BundleInvalid, match=f"palette has 1 colours for {NUM_CLASSES} labels"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "255,0,0\n0 128 255\n\n"),
        ("a.txt", "#ff0000\n#0080FF"),
        ("a.json", "[[255, 0, 0], [0, 128, 255]]"),
        ("a.json", '["#ff0000", "#0080ff"]'),
        ("a.json", '{"palette": [[255, 0, 0], [0, 128, 255]], "classes": ["a", "b"]}'),
        (
            "coco.json",
            json.dumps(
                {"categories": [{"id": 7, "name": "b", "color": [0, 128, 255]}, {"id": 1, "color": [255, 0, 0]}]}
            ),
        ),
    ],
)
def test_files_of_colours_are_read(tmp_path: Path, name: str, text: str) -> None:
    """Text, JSON, and COCO's categories by rising id."""
    (tmp_path / name).write_text(text)
    assert read_palette(tmp_path / name) == ((255, 0, 0), (0, 128, 255))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no colours"),
        ("{}", "has no colours"),
        ("[]", "has no colours"),
        ("255,0,0\nred", "colour 2 is red; expected"),
        ("255,0,0\n\n1,2,3", "colour 2 is ; expected"),
        ("1,2", "colour 1 is"),
        ("1,2,256", "colour 1 is"),
        ("-1,2,3", "colour 1 is"),
        ("[[1, 2, true]]", "colour 1 is"),
        ('[{"id": 1, "name": "a"}]', "colour 1 is None"),
        ("[1, 2, 3]", "colour 1 is 1; expected"),
        ("[", "is not valid JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    """The error names the first colour that is none."""
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(BundleInvalid, match=reason):
        read_palette(tmp_path / "a.txt")
    with pytest.raises(BundleInvalid, match="cannot be read"):
        read_palette(tmp_path / "missing.txt")
