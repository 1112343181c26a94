"""All backbones and model families. To add one, write its module and list it here; see CONTRIBUTING.md."""

from model.families.classifier import CLASSIFIER
from model.families.cmt import CMT
from model.families.convmlp import CONVMLP
from model.families.hire_mlp import HIRE_MLP
from model.families.hvt import HVT
from model.families.mask_rcnn import MASK_RCNN
from model.families.registry import BACKBONES, FAMILIES
from model.families.repmlpnet import REPMLPNET
from model.families.retinanet import RETINANET
from model.families.semantic_fpn import SEMANTIC_FPN
from model.families.upernet import UPERNET

BACKBONES |= {backbone.name: backbone for backbone in (CONVMLP, CMT, HIRE_MLP, REPMLPNET, HVT)}
FAMILIES |= {family.name: family for family in (CLASSIFIER, RETINANET, MASK_RCNN, UPERNET, SEMANTIC_FPN)}
