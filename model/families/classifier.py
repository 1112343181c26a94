"""Classifiers: a backbone with a linear layer on top."""

from __future__ import annotations

from typing import Literal

from model.families.registry import ArchitectureSpec, ModelFamily
from model.spec import CenterCropSpec, ClassifyPostSpec
from model.types import Task


class ClassifierSpec(ArchitectureSpec):
    """Backbone, LayerNorm, mean over positions, one linear layer (section 3.1 of the paper)."""

    family: Literal["classifier"] = "classifier"


CLASSIFIER = ModelFamily(
    name="classifier",
    task=Task.CLASSIFY,
    spec=ClassifierSpec,
    preprocessing=CenterCropSpec(),  # as on ImageNet
    postprocessing=ClassifyPostSpec(),
    network="model.net.classifier:NETWORK",
)
