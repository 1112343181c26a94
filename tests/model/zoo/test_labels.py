"""The class names behind the published checkpoints' indices."""

from __future__ import annotations

import pytest

from model.zoo.labels import LabelSet, read_labels

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
    """Every data set has as many names as classes, and known classes stand at their known indices."""
    size, known = KNOWN[label_set]
    labels = read_labels(label_set)
    assert len(labels) == size
    assert {index: labels[index] for index in known} == known


@pytest.mark.parametrize("label_set", list(LabelSet))
def test_a_name_means_one_class(label_set: LabelSet) -> None:
    """No two classes share a name, ImageNet's two cranes and two maillots neither; no name has blanks around it."""
    labels = read_labels(label_set)
    assert len(set(labels)) == len(labels)
    assert all(label and label == label.strip() for label in labels)


@pytest.mark.parametrize("label_set", [LabelSet.CIFAR10, LabelSet.CIFAR100])
def test_cifar_is_in_alphabetical_order(label_set: LabelSet) -> None:
    """CIFAR's own class order and that of folders sorted by name are one, so either way of training gives it."""
    labels = read_labels(label_set)
    assert list(labels) == sorted(labels)
