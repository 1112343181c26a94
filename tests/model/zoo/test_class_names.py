from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.errors import BundleInvalid
from model.zoo.checkpoint_file import read_checkpoint_file
from model.zoo.class_names import read_class_names, stored_class_names

TENSORS = {"a": torch.ones(1)}


def stored(folder: Path, content: object) -> tuple[tuple[str, ...], str] | None:
    torch.save(content, folder / "a.pth")
    found = stored_class_names(read_checkpoint_file(folder / "a.pth"))
    return None if found is None else (found.names, found.source)


@pytest.mark.parametrize(
    ("beside", "source"),
    [
        ({"meta": {"CLASSES": ("cat", "dog")}}, "meta.CLASSES"),
        ({"meta": {"CLASSES": ["cat", "dog"]}}, "meta.CLASSES"),
        ({"meta": {"dataset_meta": {"classes": ("cat", "dog"), "palette": [[0, 0, 0]]}}}, "meta.dataset_meta.classes"),
        ({"meta": {"dataset_meta": {"CLASSES": ("cat", "dog")}}}, "meta.dataset_meta.CLASSES"),
        ({"class_to_idx": {"dog": 1, "cat": 0}}, "class_to_idx"),
        ({"idx_to_class": {1: "dog", 0: "cat"}}, "idx_to_class"),
        ({"hyper_parameters": {"class_names": ["cat", "dog"]}}, "hyper_parameters.class_names"),
        ({"args": argparse.Namespace(classes=["cat", "dog"])}, "args.classes"),
    ],
)
def test_class_names_in_a_checkpoint_are_read(tmp_path: Path, beside: dict[str, object], source: str) -> None:
    """Where toolboxes and trainers store them; the place is named."""
    assert stored(tmp_path, {"state_dict": TENSORS, **beside}) == (("cat", "dog"), f"{source} in the file")


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": None},
        {"CLASSES": ()},
        {"CLASSES": "catdog"},
        {"CLASSES": ("cat", 3)},
        {"CLASSES": ("cat", " ")},
        {"classes": {0: "cat", 2: "dog"}},
        {"classes": {"cat": 0, "dog": 0}},
        {},
        "none",
    ],
)
def test_what_is_no_list_of_names_is_ignored(tmp_path: Path, meta: object) -> None:
    """Numbers, blanks, gaps, and text in place of a list."""
    assert stored(tmp_path, {"state_dict": TENSORS, "meta": meta}) is None


def test_class_names_in_a_safetensors_header_are_read(tmp_path: Path) -> None:
    """As JSON, since a header has only text."""
    safetensors.torch.save_file(TENSORS, tmp_path / "a.pth", {"class_names": '["cat", "dog"]', "labels": "{"})
    found = stored_class_names(read_checkpoint_file(tmp_path / "a.pth"))
    assert found is not None
    assert (found.names, found.source) == (("cat", "dog"), "class_names in the file's header")


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ({"architecture": "convmlp_s", "label_names": ["cat", "dog"]}, "label_names in config.json"),
        ({"model_type": "x", "id2label": {"0": "cat", "1": "dog"}}, "id2label in config.json"),
        ({"pretrained_cfg": {"label_names": ["cat", "dog"]}}, "pretrained_cfg.label_names in config.json"),
    ],
)
def test_class_names_beside_the_weights_are_read(tmp_path: Path, config: object, source: str) -> None:
    """As timm's and transformers' folders have them."""
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = stored_class_names(read_checkpoint_file(tmp_path))
    assert found is not None
    assert (found.names, found.source) == (("cat", "dog"), source)


COCO = {"categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat", "supercategory": "animal"}]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "cat\ndog"),
        ("a.txt", "cat\r\n dog \n\n  \n"),
        ("a.txt", "\ufeffcat\ndog\n"),
        ("a.txt", "n02123045 cat\nn02084071 dog\n"),
        ("a.json", '["cat", "dog"]'),
        ("a.json", '{"1": "dog", "0": "cat"}'),
        ("a.json", '{"cat": 0, "dog": 1}'),
        ("a.json", '{"0": ["n02123045", "cat"], "1": ["n02084071", "dog"]}'),
        ("a.json", json.dumps({**COCO, "images": [], "annotations": []})),
        ("a.json", json.dumps(COCO["categories"])),
        ("a.csv", "index,name\n1,dog\n0,cat\n"),
        ("a.csv", "name,colour\ncat,red\ndog,blue\n"),
        ("a.csv", "n02123045,cat\nn02084071,dog\n\n"),
        ("a.csv", "0,cat\n1,dog\n"),
        ("a.csv", 'id,wordnet,name\n0,n02123045,"cat"\n1,n02084071,"dog"\n'),
        ("a.tsv", "cat\tn02123045\ndog\tn02084071\n"),
    ],
)
def test_files_of_class_names_are_read(tmp_path: Path, name: str, content: str) -> None:
    """Text, JSON, CSV with WordNet ids, and COCO's categories by rising id."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_class_names(tmp_path / name) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", "", "is empty; expected one name per line"),
        ("a.txt", "cat\n\ndog", "line 2 is empty"),
        ("a.json", "[1, 2]", "has no class names; expected a JSON list"),
        ("a.json", '{"0": "cat", "2": "dog"}', "indices from 0 without gaps"),
        ("a.json", '["cat"', "is not valid JSON"),
        ("a.json", '{"categories": [{"id": "1", "name": "cat"}]}', "category 0 has no id and name"),
        ("a.json", '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "two categories have the id 1"),
        ("a.json", '{"categories": []}', "has no categories"),
        ("a.csv", "", "is empty; expected a row for each class"),
        ("a.csv", "index,name\n0,cat\n1,\n", "row 3 has no name; expected one in column 2"),
        ("a.csv", "index,name\n0,cat\n2,dog\n", "the indices in column 1 are not 0 to 1, each once"),
        ("a.csv", "index,name\n0,cat\n0,dog\n", "the indices in column 1 are not 0 to 1, each once"),
    ],
)
def test_wrong_files_of_class_names_are_refused(tmp_path: Path, name: str, content: str, why: str) -> None:
    """The error names the line, the row or the category, and what was expected."""
    (tmp_path / name).write_text(content)
    with pytest.raises(BundleInvalid, match=why):
        read_class_names(tmp_path / name)
