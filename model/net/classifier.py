"""Classifiers: the family's network on any backbone, and top-k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from model.families.classifier import ClassifierSpec
from model.families.registry import backbone_of
from model.net.network import FamilyNetwork, StateDictShapes, backbone_network_of, infer_backbone
from model.spec import ClassifyPostSpec, Postprocessing
from model.types import Batch, ClassifyOutput, EmbedOutput, Float32Array, QueryParams

CLASS_KEY = "head.weight"
DEFAULT = ClassifyPostSpec()


def top_k_classes(
    logits: Tensor, params: Sequence[QueryParams], spec: ClassifyPostSpec = DEFAULT
) -> list[ClassifyOutput]:
    """Logits (N, classes) → each row's `top_k` classes by probability, all classes if there are fewer.

    Equal probabilities are ordered by class index. Of a spec with a threshold, only classes above it; NaN is.
    """
    logits = logits.float()
    probabilities = logits.softmax(dim=1) if spec.activation == "softmax" else logits.sigmoid()
    ordered, indices = probabilities.sort(dim=1, descending=True, stable=True)
    most_labels = max(row_params.top_k for row_params in params)
    scores, classes = ordered[:, :most_labels].cpu().numpy(), indices[:, :most_labels].cpu().numpy()
    counts = [row_params.top_k for row_params in params]
    if spec.score_threshold > 0:
        counts = [
            min(most, _above(spec, row_params, row))
            for most, row_params, row in zip(counts, params, scores, strict=True)
        ]
    return [
        ClassifyOutput(indices=classes[row, :count], scores=scores[row, :count]) for row, count in enumerate(counts)
    ]


def _above(spec: ClassifyPostSpec, params: QueryParams, scores: Float32Array) -> int:
    """How many of a row's falling scores are above its threshold."""
    threshold = spec.score_threshold if params.score_threshold is None else params.score_threshold
    return int((~(scores <= threshold)).sum())


def _build(spec: ClassifierSpec, num_classes: int) -> nn.Module:
    return backbone_network_of(backbone_of(spec.backbone)).build_classifier(spec.backbone, num_classes)


def _predict(
    network: nn.Module, x: Tensor, batch: Batch, postprocessing: Postprocessing
) -> Sequence[ClassifyOutput | EmbedOutput]:
    assert isinstance(postprocessing, ClassifyPostSpec)
    if not any(row_params.embed for row_params in batch.params):
        return top_k_classes(network(x), batch.params, postprocessing)
    # One pass for rows of both kinds.
    classifier: Any = network
    features: Tensor = classifier.features(x)
    labels = top_k_classes(classifier.head(features), batch.params, postprocessing)
    embeddings: Float32Array = features.float().cpu().numpy()
    return [
        EmbedOutput(embeddings[row].copy()) if row_params.embed else labels[row]
        for row, row_params in enumerate(batch.params)
    ]


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
