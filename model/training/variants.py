"""Backbones that can be trained on the pets data beside the embedded models' own, all by one recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.families.cmt import CMTSpec
from model.families.hire_mlp import HireMLPSpec
from model.families.hvt import HVTSpec
from model.families.registry import BACKBONES, FAMILIES, BackboneSpec, input_problem
from model.families.repmlpnet import RepMLPNetSpec
from model.spec import CenterCropSpec
from model.training.classify import TEST_SHARE, ClassifyRecipe
from model.training.recipes import BACKBONE, RECIPES, PetsModel, Recipe

TINY_SIDE = 96
"""The side of the classifiers' inputs, px."""
TINY = {
    "convmlp": BACKBONE,
    "hire_mlp": HireMLPSpec(stage_channels=(32, 64, 128, 224), stage_depths=(1, 2, 4, 1), mlp_ratio=2),
    "repmlpnet": RepMLPNetSpec(
        stage_channels=(32, 64, 128, 256),
        stage_depths=(1, 2, 4, 1),
        share_sets=(1, 2, 4, 16),
        partitions=(24, 12, 6, 3),
        mlp_ratio=3,
    ),
    "cmt": CMTSpec(
        input_size=TINY_SIDE,
        stem_channels=16,
        stage_channels=(32, 64, 128, 256),
        stage_depths=(1, 1, 3, 1),
        hidden_channels=(96, 192, 384, 768),
        projection_channels=512,
    ),
    "hvt": HVTSpec(input_size=TINY_SIDE, patch=8, channels=192, depth=6, pooled_blocks=(0, 2), mlp_ratio=2),
}
"""Of about two million parameters each, which three thousand photographs can train in an hour of a CPU."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A backbone of a size. `side`: of its classifier's inputs, px."""

    backbone: str
    size: str
    spec: BackboneSpec
    side: int

    @property
    def name(self) -> str:
        return f"{self.backbone}_{self.size}"


def variants(backbone: str) -> dict[str, Variant]:
    """Of a backbone, by size: `tiny`, and the published ones. Hire-MLP-Tiny, published as `tiny`, is `ti` here.

    Raises:
        ValueError: there is no such backbone.
    """
    if backbone not in TINY:
        raise ValueError(f"there is no backbone {backbone!r}; choose one of {', '.join(TINY)}")
    found = {"tiny": Variant(backbone, "tiny", TINY[backbone], TINY_SIDE)}
    for published, spec in BACKBONES[backbone].sizes.items():
        size = "ti" if published == "tiny" else published
        found[size] = Variant(backbone, size, spec, spec.classifier_preprocessing.crop)
    return found


def find_variant(backbone: str, size: str) -> Variant:
    """Raises ValueError: there is no such backbone, or it has no such size."""
    found = variants(backbone)
    if size not in found:
        raise ValueError(f"{backbone} has no size {size!r}; choose one of {', '.join(found)}")
    return found[size]


def variant_recipe(kind: PetsModel, variant: Variant) -> Recipe:
    """The recipe of one of the pets models on another backbone, which depends on the backbone by its input size alone.

    A classifier learns from breeds at a single input size: not every backbone has maps, or takes inputs of other sizes.

    Raises:
        ValueError: the backbone cannot be below a detector or a segmenter.
    """
    recipe = RECIPES[kind]
    architecture = recipe.architecture.model_copy(update={"backbone": variant.spec})
    changed = replace(recipe, name=f"{variant.name}_pets_{kind.value}", architecture=architecture, variant=variant.name)
    if kind is PetsModel.BREED:
        side = variant.side
        return replace(
            changed,
            examples=ClassifyRecipe(sizes=((0.0, side),), test_size=side, map_weight=0.0),
            schedule=replace(recipe.schedule, bf16=False, evaluate_every=5),
            preprocessing=CenterCropSpec(resize_shorter=round(side / TEST_SHARE), crop=side),
        )
    task = FAMILIES[architecture.family].task.value
    if not variant.spec.has_levels:
        raise ValueError(f"{variant.backbone} has no feature levels: it can be trained as `breed` only, not to {task}")
    if input_problem(variant.spec, recipe.preprocessing):
        sides = f"of {variant.side} x {variant.side} px only"
        raise ValueError(f"{variant.backbone} takes inputs {sides}: it can be trained as `breed` only, not to {task}")
    return changed
