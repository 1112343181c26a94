"""Classifiers: a backbone, pooling and a linear layer."""

from __future__ import annotations

from typing import Literal

from model.families.registry import ArchitectureSpec, ModelFamily
from model.spec import CenterCropSpec, ClassifyPostSpec
from model.types import Task


class ClassifierSpec(ArchitectureSpec):
    """Backbone, pooling, one linear layer. The backbone defines the pooling, as its authors do."""

    family: Literal["classifier"] = "classifier"


CLASSIFIER = ModelFamily(
    name="classifier",
    task=Task.CLASSIFY,
    spec=ClassifierSpec,
    preprocessing=CenterCropSpec(),  # as on ImageNet
    postprocessing=ClassifyPostSpec(),
    network="model.net.classifier:NETWORK",
)
