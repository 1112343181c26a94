"""From numbers to modules."""

from __future__ import annotations

from model.net.convmlp import ConvMLPClassifier
from model.net.mask_rcnn import MaskRCNN
from model.net.retinanet import RetinaNet
from model.net.semantic_fpn import SemanticFPN
from model.spec import Architecture, ClassifierSpec, MaskRCNNSpec, RetinaNetSpec, SemanticFPNSpec

Network = ConvMLPClassifier | RetinaNet | MaskRCNN | SemanticFPN


def build_network(architecture: Architecture, num_classes: int) -> Network:
    """The network of an architecture, with random weights, in training mode."""
    match architecture:
        case ClassifierSpec():
            return ConvMLPClassifier(architecture.backbone, num_classes)
        case RetinaNetSpec():
            return RetinaNet(architecture, num_classes)
        case MaskRCNNSpec():
            return MaskRCNN(architecture, num_classes)
        case SemanticFPNSpec():
            return SemanticFPN(architecture, num_classes)
