"""Recipes for data of one's own: a network from scratch, or one that starts from a bundle."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.bundle import Bundle
from model.families.classifier import ClassifierSpec
from model.families.registry import Architecture, backbone_of, input_problem
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.spec import CenterCropSpec, KeepRatioSpec
from model.training.classify import TEST_SHARE, ClassifyRecipe
from model.training.recipes import BACKBONE, PetsModel, Recipe
from model.training.variants import Variant, variant_recipe
from model.types import Task

KINDS = {Task.CLASSIFY: PetsModel.BREED, Task.DETECT: PetsModel.HEADS, Task.SEGMENT: PetsModel.OUTLINE}
"""The pets model whose hyperparameters a task's recipe takes."""
FINE_TUNING_EPOCHS = 20
FINE_TUNING_RATE = 5e-4
"""Of a network that starts from a bundle of its task: a sixth of a classifier's own."""
MEMORY_SIDE = 320
"""The shorter side to which pictures are reduced in memory, px: larger than the networks' inputs."""
PAD_MULTIPLE = 32
SMALL_SIDE = 192
"""Of the inputs of the default network, px."""


def custom_recipe(
    task: Task,
    name: str,
    num_examples: int,
    *,
    variant: Variant | None = None,
    start: Bundle | None = None,
    input_side: int | None = None,
    learning_rate: float | None = None,
) -> Recipe:
    """The recipe for a task.

    Args:
        task: of the data.
        name: of the model.
        num_examples: pictures to learn from; a batch has no more.
        variant: backbone and size; None: that of `start`, or the small ConvMLP of the embedded models.
        start: bundle to start from: of the task, with its heads, or a classifier, whose backbone is taken.
        input_side: of a classifier the side of its inputs, else their shorter side, px; None: the recipe's.
        learning_rate: the peak rate; None: the recipe's.

    Raises:
        ValueError: `start` cannot be trained for the task, or the backbone cannot be below its family, or cannot take
            inputs of this side.
    """
    kind = KINDS[task]
    if start is not None:
        recipe = _starting_recipe(task, kind, start)
    else:
        recipe = variant_recipe(kind, variant or Variant("convmlp", "tiny", BACKBONE, SMALL_SIDE))
    schedule = replace(
        recipe.schedule,
        batch_size=min(recipe.schedule.batch_size, num_examples),
        learning_rate=learning_rate or recipe.schedule.learning_rate,
        bf16=torch.cuda.is_available(),
    )
    recipe = replace(recipe, name=name, variant="", schedule=schedule)
    if input_side is not None:
        recipe = _with_input_side(recipe, input_side)
    if problem := input_problem(recipe.architecture.backbone, recipe.preprocessing):
        raise ValueError(problem)
    return recipe


def _with_input_side(recipe: Recipe, side: int) -> Recipe:
    if isinstance(recipe.examples, ClassifyRecipe):
        return replace(
            recipe,
            examples=replace(recipe.examples, sizes=((0.0, side),), test_size=side),
            preprocessing=CenterCropSpec(resize_shorter=round(side / TEST_SHARE), crop=side),
        )
    window = round(side / PAD_MULTIPLE) * PAD_MULTIPLE or PAD_MULTIPLE
    return replace(
        recipe,
        examples=replace(recipe.examples, sizes=((0.0, window),), test_side=window),
        preprocessing=KeepRatioSpec(long_side=side * 3 // 2, short_side=side, pad_multiple=PAD_MULTIPLE),
    )


def _starting_recipe(task: Task, kind: PetsModel, start: Bundle) -> Recipe:
    config = start.config
    backbone = config.architecture.backbone
    if backbone != backbone.published_form:
        raise ValueError(
            f"{config.name} has a {backbone_of(backbone).name} in the form for serving, which cannot be trained; start "
            "from a model that was imported in the form of its training"
        )
    if config.task not in (task, Task.CLASSIFY):
        raise ValueError(
            f"{config.name} is for {config.task.value}; expected a model for {task.value}, or a classifier"
        )
    side = backbone.input_side or (config.preprocessing.crop if isinstance(config.preprocessing, CenterCropSpec) else 0)
    recipe = variant_recipe(kind, Variant(backbone_of(backbone).name, backbone.size, backbone, side or SMALL_SIDE))
    if config.task is not task:
        return recipe
    architecture: Architecture = config.architecture
    schedule = replace(
        recipe.schedule,
        epochs=FINE_TUNING_EPOCHS,
        decay_epochs=FINE_TUNING_EPOCHS / 2,
        warmup_epochs=1,
        learning_rate=FINE_TUNING_RATE,
    )
    recipe = replace(recipe, architecture=architecture, schedule=schedule)
    if isinstance(architecture, ClassifierSpec):
        return recipe
    expected = RetinaNetSpec if task is Task.DETECT else SemanticFPNSpec
    if not isinstance(architecture, expected):
        raise ValueError(
            f"{config.name} is a {architecture.family}, which is not trained here; start from a "
            f"{'RetinaNet' if task is Task.DETECT else 'Semantic FPN'}, or from a classifier"
        )
    return recipe


def memory_side(recipe: Recipe) -> int:
    """The shorter side that pictures need in memory, px."""
    sides = [side for _, side in recipe.examples.sizes]
    return max(MEMORY_SIDE, *(round(side / TEST_SHARE) for side in sides))
