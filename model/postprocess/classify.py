from __future__ import annotations

from model.types import ClassifyOutput, ClassifyResult, Label, Size


def name_labels(raw: ClassifyOutput, labels: tuple[str, ...], size: Size) -> ClassifyResult:
    """The best classes with their names, by falling score as they come."""
    scored = zip(raw.indices.tolist(), raw.scores.tolist(), strict=True)
    return ClassifyResult(size, tuple(Label(labels[index], index, score) for index, score in scored))
