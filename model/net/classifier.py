"""The ConvMLP classifier (arXiv 2109.04454, section 3.1) and its answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model.net.backbone import ConvMLP
from model.spec import BackboneSpec
from model.types import ClassifyOutput, QueryParams


class ConvMLPClassifier(ConvMLP):
    """Backbone, LayerNorm, mean over positions, linear: normalised float (N, 3, H, W) RGB → logits (N, classes).

    It extends the backbone instead of holding one, because the authors' classifier checkpoints name the
    backbone's parameters without a prefix.
    """

    def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
        super().__init__(spec)
        channels = spec.stage_channels[-1]
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        level32 = super().forward(x)[-1].permute(0, 2, 3, 1)
        out: Tensor = self.head(self.norm(level32).mean(dim=(1, 2)))
        return out


def best_classes(logits: Tensor, params: Sequence[QueryParams]) -> list[ClassifyOutput]:
    """Logits (N, classes) → each row's `top_k` classes, or all where there are fewer, by softmax probability.

    Equal probabilities come in the order of the classes.
    """
    probabilities = logits.float().softmax(dim=1)
    ordered, indices = probabilities.sort(dim=1, descending=True, stable=True)
    most = max(one.top_k for one in params)
    scores, classes = ordered[:, :most].cpu().numpy(), indices[:, :most].cpu().numpy()
    return [
        ClassifyOutput(indices=classes[row, : one.top_k], scores=scores[row, : one.top_k])
        for row, one in enumerate(params)
    ]
