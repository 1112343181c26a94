"""Classifiers: the family's network on any backbone, and top-k."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model.families.classifier import ClassifierSpec
from model.families.registry import backbone_of
from model.net.network import FamilyNetwork, StateDictShapes, backbone_network_of, infer_backbone
from model.spec import Postprocessing
from model.types import Batch, ClassifyOutput, QueryParams

CLASS_KEY = "head.weight"


def top_k_classes(logits: Tensor, params: Sequence[QueryParams]) -> list[ClassifyOutput]:
    """Logits (N, classes) → each row's `top_k` classes by softmax probability, all classes if there are fewer.

    Equal probabilities are ordered by class index.
    """
    probabilities = logits.float().softmax(dim=1)
    ordered, indices = probabilities.sort(dim=1, descending=True, stable=True)
    most_labels = max(row_params.top_k for row_params in params)
    scores, classes = ordered[:, :most_labels].cpu().numpy(), indices[:, :most_labels].cpu().numpy()
    return [
        ClassifyOutput(indices=classes[row, : row_params.top_k], scores=scores[row, : row_params.top_k])
        for row, row_params in enumerate(params)
    ]


def _build(spec: ClassifierSpec, num_classes: int) -> nn.Module:
    return backbone_network_of(backbone_of(spec.backbone)).build_classifier(spec.backbone, num_classes)


def _predict(network: nn.Module, x: Tensor, batch: Batch, _: Postprocessing) -> list[ClassifyOutput]:
    return top_k_classes(network(x), batch.params)


def _infer(shapes: StateDictShapes) -> tuple[ClassifierSpec, int]:
    return ClassifierSpec(backbone=infer_backbone(shapes, prefix="")), shapes.rows(CLASS_KEY)


def _score_layer(network: nn.Module) -> nn.Linear:
    assert isinstance(network.head, nn.Linear)
    return network.head


NETWORK = FamilyNetwork(
    build=_build,
    predict=_predict,
    class_key=CLASS_KEY,
    infer=_infer,
    score_layer=_score_layer,
    wrapped=False,
)
