"""The catalogue against the authors' publications and against our networks; and the class names."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.errors import BundleInvalid
from model.families.convmlp import ConvMLPSpec
from model.net.network import build_network
from model.spec import CenterCropSpec, DetectPostSpec, KeepRatioSpec, Normalisation, Preprocessing
from model.types import Task
from model.zoo.catalogue import CATALOGUE, CatalogueEntry, LabelSet, entry, read_labels
from model.zoo.importer import published_metadata

ENTRIES = [pytest.param(one, id=name) for name, one in CATALOGUE.items()]
CONVMLP_ENTRIES = {name: one for name, one in CATALOGUE.items() if isinstance(one.architecture.backbone, ConvMLPSpec)}

FILES = {
    "https://shi-labs.com/projects/convmlp/checkpoints/" + path.format(size=size)
    for size in "sml"
    for path in (
        "convmlp_{size}_imagenet.pth",
        "convmlp_{size}_cifar10.pth",
        "convmlp_{size}_cifar100.pth",
        "convmlp_{size}_flowers102.pth",
        "detection/maskrcnn_convmlp_{size}_coco.pth",
        "detection/retinanet_convmlp_{size}_coco.pth",
        "segmentation/sem_fpn_convmlp_{size}_ade20k.pth",
    )
}


def network_of(one: CatalogueEntry) -> nn.Module:
    with torch.device("meta"):
        return build_network(one.architecture, len(one.labels)).eval()


def test_convmlp_has_the_21_published_files() -> None:
    """Each file that the authors publish has one entry, at their address, named by its stem."""
    assert len(CONVMLP_ENTRIES) == 21
    assert {one.url for one in CONVMLP_ENTRIES.values()} == FILES
    assert all(one.url.endswith(f"/{name}.pth") for name, one in CONVMLP_ENTRIES.items())
    assert all(entry(name) is one for name, one in CATALOGUE.items())


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """The error lists the published names."""
    with pytest.raises(BundleInvalid, match=r"'convmlp_xl_imagenet'.*convmlp_s_imagenet.*sem_fpn_convmlp_l_ade20k"):
        entry("convmlp_xl_imagenet")


@pytest.mark.parametrize("one", ENTRIES)
def test_parameters_are_the_published_number(one: CatalogueEntry) -> None:
    """Architecture and class count give a network with the published number of parameters."""
    parameters = sum(parameter.numel() for parameter in network_of(one).parameters())
    # Mask R-CNN on ConvMLP-M has 37.048 million, printed as 37.1, RepMLPNet-L256 117.642, printed as 117.7: authors
    # round up now and then.
    rounding = 0.06 if one.parameters_millions % 1 else 0.53
    assert parameters / 1e6 == pytest.approx(one.parameters_millions, abs=rounding)


@pytest.mark.parametrize("one", [one for one in ENTRIES if CATALOGUE[str(one.id)].gmacs is not None])
def test_macs_are_the_published_number(one: CatalogueEntry) -> None:
    """A picture of the size that the authors evaluate takes the published number of multiply-adds."""
    assert isinstance(one.preprocessing, CenterCropSpec)
    side = one.preprocessing.crop
    with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.device("meta"):
        network_of(one)(torch.zeros(1, 3, side, side))
    # RepMLPNet-L256 has 11.61, printed as 11.5.
    assert counter.get_total_flops() / 2e9 == pytest.approx(
        one.gmacs, abs=0.12 if one.name == "repmlpnet_l256" else 0.065
    )


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("convmlp_s_imagenet", {"top1": 0.768}),
        ("convmlp_m_cifar10", {"top1": 0.986}),
        ("convmlp_m_cifar100", {"top1": 0.891}),
        ("convmlp_l_flowers102", {"top1": 0.995}),
        (
            "maskrcnn_convmlp_m_coco",
            {
                "box_ap": 0.406,
                "box_ap50": 0.617,
                "box_ap75": 0.445,
                "mask_ap": 0.372,
                "mask_ap50": 0.588,
                "mask_ap75": 0.398,
            },
        ),
        ("retinanet_convmlp_l_coco", {"box_ap": 0.402, "box_ap50": 0.593, "box_ap75": 0.433}),
        ("sem_fpn_convmlp_s_ade20k", {"miou": 0.358}),
    ],
)
def test_figures_are_the_published_ones(name: str, metrics: dict[str, float]) -> None:
    """A row of each published table, as fractions, marked as the authors'."""
    accuracy = entry(name).accuracy
    assert accuracy.metrics == metrics
    assert "published by the authors" in accuracy.measured_on


@pytest.mark.parametrize(
    ("name", "preprocessing"),
    [
        ("convmlp_l_imagenet", CenterCropSpec(resize_shorter=248, crop=224)),
        (
            "convmlp_m_cifar10",
            CenterCropSpec(
                resize_shorter=224,
                crop=224,
                normalisation=Normalisation(mean=(125.307, 122.961, 113.8575), std=(62.985, 62.0925, 66.708)),
            ),
        ),
        (
            "convmlp_s_cifar100",
            CenterCropSpec(
                resize_shorter=224,
                crop=224,
                normalisation=Normalisation(mean=(129.3105, 124.1085, 112.404), std=(68.2125, 65.4075, 70.4055)),
            ),
        ),
        (
            "convmlp_s_flowers102",
            CenterCropSpec(
                resize_shorter=224,
                crop=224,
                normalisation=Normalisation(mean=(111.0015, 96.2115, 73.236), std=(75.633, 62.6025, 68.799)),
            ),
        ),
        ("maskrcnn_convmlp_s_coco", KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32)),
        ("retinanet_convmlp_m_coco", KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32)),
        ("sem_fpn_convmlp_l_ade20k", KeepRatioSpec(long_side=2048, short_side=512, pad_multiple=1)),
    ],
)
def test_preprocessing_is_that_of_the_authors_configurations(name: str, preprocessing: Preprocessing) -> None:
    """Sizes, and mean and std in grey levels, are those that each dataset was trained with."""
    assert entry(name).preprocessing == preprocessing


def test_detectors_run_with_the_toolbox_settings() -> None:
    """Thresholds and limits are mmdetection's for these models; the published AP depends on them."""
    for one in CATALOGUE.values():
        if one.task is Task.DETECT:
            assert one.postprocessing == DetectPostSpec(
                score_threshold=0.05,
                nms_iou=0.5,
                candidates_per_level=1000,
                proposals=1000,
                proposal_nms_iou=0.7,
                mask_threshold=0.5,
            )


@pytest.mark.parametrize("one", ENTRIES)
def test_an_entry_becomes_a_valid_config_that_names_its_source(one: CatalogueEntry) -> None:
    """Every entry makes a valid bundle config with paper, address and authors."""
    config = published_metadata(one).config(None, "0" * 64)
    assert (config.name, config.task, config.labels) == (one.name, one.task, one.labels)
    assert (config.architecture, config.preprocessing) == (one.architecture, one.preprocessing)
    if name_size := one.name.partition("convmlp_")[2]:
        assert config.architecture.backbone.size == name_size[0]
    assert config.source.url == one.url
    assert "arxiv.org/abs/" in config.source.attribution
    assert "{" not in config.source.description + config.source.licence


def test_the_catalogue_needs_no_torch() -> None:
    """A command that only lists published models starts without torch."""
    code = "import sys, model.zoo.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KNOWN: dict[LabelSet, tuple[int, dict[int, str]]] = {
    LabelSet.IMAGENET: (
        1000,
        {
            0: "tench",
            1: "goldfish",
            134: "crane bird",
            207: "golden retriever",
            281: "tabby",
            517: "crane",
            638: "maillot",
            639: "maillot tank suit",
            817: "sports car",
            999: "toilet tissue",
        },
    ),
    LabelSet.CIFAR10: (10, {0: "airplane", 1: "automobile", 3: "cat", 5: "dog", 9: "truck"}),
    LabelSet.CIFAR100: (100, {0: "apple", 1: "aquarium_fish", 47: "maple_tree", 71: "sea", 99: "worm"}),
    LabelSet.FLOWERS102: (
        102,
        {0: "pink primrose", 1: "hard-leaved pocket orchid", 20: "fire lily", 73: "rose", 101: "blackberry lily"},
    ),
    LabelSet.COCO: (
        80,
        # 11 and 12 close the first gap in COCO's own ids, 79 the last one.
        {0: "person", 10: "fire hydrant", 11: "stop sign", 12: "parking meter", 15: "cat", 16: "dog", 79: "toothbrush"},
    ),
    LabelSet.ADE20K: (150, {0: "wall", 2: "sky", 7: "bed", 12: "person", 20: "car", 149: "flag"}),
}


@pytest.mark.parametrize("label_set", list(LabelSet))
def test_an_index_has_the_name_that_the_checkpoint_learnt(label_set: LabelSet) -> None:
    """Every dataset has as many names as classes; known classes have their known indices."""
    size, known = KNOWN[label_set]
    labels = read_labels(label_set)
    assert len(labels) == size
    assert {index: labels[index] for index in known} == known


@pytest.mark.parametrize("label_set", list(LabelSet))
def test_a_name_means_one_class(label_set: LabelSet) -> None:
    """Names are unique, also ImageNet's two cranes and two maillots, and have no surrounding blanks."""
    labels = read_labels(label_set)
    assert len(set(labels)) == len(labels)
    assert all(label and label == label.strip() for label in labels)


@pytest.mark.parametrize("label_set", [LabelSet.CIFAR10, LabelSet.CIFAR100])
def test_cifar_is_in_alphabetical_order(label_set: LabelSet) -> None:
    """CIFAR's class order and that of folders sorted by name are equal."""
    labels = read_labels(label_set)
    assert list(labels) == sorted(labels)
