"""Training: from labelled pictures to a bundle with its measured accuracy and its sources."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from model.bundle import Accuracy, Bundle, Source, read_bundle
from model.families.registry import BackboneSpec, backbone_of
from model.net.network import build_network
from model.net.retinanet import RetinaNet
from model.net.semantic_fpn import SemanticFPN
from model.net.weights import BundleMetadata, load_weights, write_bundle
from model.predictor import Predictor, reference_answer
from model.training.calibrate import apply_calibration, fit_calibration
from model.training.classify import BreedNet, BreedTraining, ClassifyRecipe, initialise
from model.training.data import HELD_OUT_FOLD, SPECIES, Record, load_photographs, read_index
from model.training.detect import DetectorTraining, DetectRecipe
from model.training.evaluate import measure
from model.training.loop import Training, run, scaled
from model.training.recipes import RECIPES, PetsModel, Recipe
from model.training.segment import OUTLINE_LABELS, SegmenterTraining
from model.types import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Pictures to learn from, and those that are held out to measure and to calibrate with.

    `labels`: class names by index. `shorter_side`: to which pictures are reduced in memory, px; None: not at all.
    `source`: of the trained weights. `measured_on`: what the figures are of.
    """

    labels: tuple[str, ...]
    learn: Sequence[Record]
    held_out: Sequence[Record]
    source: Source
    measured_on: str
    shorter_side: int | None = None


def train(
    kind: PetsModel,
    data_dir: Path,
    out_dir: Path,
    *,
    backbone_from: Path | None = None,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    stop_after: int | None = None,
    command: str,
) -> Bundle:
    """Train one of the pets models: as `train_on`.

    Args:
        kind: which of the three models.
        data_dir: the folder with `index.csv`.
        out_dir: gets `<kind>/`, or `<variant>_<kind>/`, with checkpoint and log, and `bundles/<name>/`.
        backbone_from: a breed bundle; the detector or outline model starts from its backbone.
        recipe: instead of the model's own.
        epochs: instead of the recipe's.
        stop_after: stop after that many steps in total, and export.
        command: the command line, for the bundle's `source`.

    Raises:
        BundleInvalid: `backbone_from` is not a bundle of the recipe's backbone.
        OSError: the data cannot be read, or the results cannot be written.
        ValueError: the index is not valid, or `backbone_from` is not a classifier.
        FloatingPointError: the loss is no longer finite.
    """
    recipe = RECIPES[kind] if recipe is None else recipe
    index = read_index(data_dir)
    labels = {PetsModel.BREED: index.breeds, PetsModel.HEADS: SPECIES, PetsModel.OUTLINE: OUTLINE_LABELS}[kind]
    trained = recipe.variant or "ConvMLP"
    description = f"{trained} trained from scratch on the Oxford-IIIT Pet dataset by `{command}`"
    held_out = index.held_out()
    data = TrainingData(
        labels,
        index.training(),
        held_out,
        Source(description=description, url=URL, licence=LICENCE, attribution=ATTRIBUTION),
        _measured_on(kind, held_out),
    )
    folder = f"{recipe.variant}_{kind.value}" if recipe.variant else kind.value
    return train_on(data, recipe, out_dir, folder, backbone_from=backbone_from, epochs=epochs, stop_after=stop_after)


def train_on(
    data: TrainingData,
    recipe: Recipe,
    out_dir: Path,
    folder: str,
    *,
    backbone_from: Path | None = None,
    start_from: Path | None = None,
    epochs: int | None = None,
    stop_after: int | None = None,
) -> Bundle:
    """Train a model, from its checkpoint in `out_dir`/`folder` if there is one; measure it; write its bundle.

    `start_from`: a bundle; tensors of the same name and shape start with its values. Other arguments and errors: as of
    `train`.
    """
    schedule = recipe.schedule if epochs is None else scaled(recipe.schedule, epochs)
    torch.manual_seed(schedule.seed)
    training = _training(recipe, data, backbone_from, start_from)
    averaged = run(training, schedule, out_dir / folder, stop_after)
    network: nn.Module = averaged.classifier if isinstance(averaged, BreedNet) else averaged
    return export(recipe, network.cpu(), data, out_dir / "bundles")


def _training(recipe: Recipe, data: TrainingData, backbone_from: Path | None, start_from: Path | None) -> Training:
    photographs = (load_photographs(data.learn, data.shorter_side), load_photographs(data.held_out, data.shorter_side))
    num_classes = len(data.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(recipe.examples, ClassifyRecipe):
        module = BreedNet(recipe.architecture.backbone, num_classes, maps=recipe.examples.map_weight > 0)
        if start_from is not None:
            copy_tensors(read_bundle(start_from), module.classifier)
        return BreedTraining(recipe.examples, module.to(device), *photographs)
    network = build_network(recipe.architecture, num_classes)
    assert isinstance(network, RetinaNet | SemanticFPN)
    if backbone_from is not None:
        copy_backbone(read_bundle(backbone_from), recipe.architecture.backbone, network.backbone)
    elif start_from is not None:
        copy_tensors(read_bundle(start_from), network)
    else:
        initialise(network.backbone)
    if isinstance(recipe.examples, DetectRecipe):
        assert isinstance(network, RetinaNet)
        return DetectorTraining(recipe.examples, network.to(device), *photographs)
    assert isinstance(network, SemanticFPN)
    return SegmenterTraining(recipe.examples, network.to(device), data.labels, *photographs)


def copy_tensors(bundle: Bundle, network: nn.Module) -> None:
    """Give the network the values of a bundle's tensors of the same name and shape. Raises BundleInvalid."""
    found = build_network(bundle.config.architecture, len(bundle.config.labels))
    load_weights(found, bundle)
    known = found.state_dict()
    own = network.state_dict()
    own.update({name: known[name] for name, value in own.items() if name in known and known[name].shape == value.shape})
    network.load_state_dict(own)


def copy_backbone(bundle: Bundle, spec: BackboneSpec, backbone: nn.Module) -> None:
    """Load `backbone`, built from `spec`, from a classifier's bundle.

    Norms of levels, which a classifier does not have, stay as they are.

    Raises:
        BundleInvalid: the weights do not match the architecture.
        ValueError: it is not a classifier, or has another backbone.
    """
    config = bundle.config
    if config.task is not Task.CLASSIFY:
        raise ValueError(f"bundle {bundle.folder} is for task {config.task.value}; a classifier is needed")
    found = config.architecture.backbone
    if found != spec:
        raise ValueError(
            f"bundle {bundle.folder} has another backbone ({backbone_of(found).name} of size {found.size}) than the "
            f"model to train ({backbone_of(spec).name} of size {spec.size}); give the --backbone and --size that it "
            "was trained with"
        )
    classifier = build_network(config.architecture, len(config.labels))
    load_weights(classifier, bundle)
    tensors = classifier.state_dict()
    backbone.load_state_dict({key: tensors.get(key, value) for key, value in backbone.state_dict().items()})


URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
LICENCE = (
    "Weights trained on the Oxford-IIIT Pet dataset. Its page offers the dataset under CC BY-SA 4.0 and says that "
    "the copyright remains with the original owners of the images; the README in the annotation archive says "
    "research purposes."
)
ATTRIBUTION = 'O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "Cats and Dogs", CVPR 2012 (Oxford-IIIT Pet)'


def export(recipe: Recipe, network: nn.Module, data: TrainingData, store: Path) -> Bundle:
    """Calibrate, measure and write the bundle `store`/`recipe.name`, with fp16 weights.

    Calibration changes the network's last layer. The metrics are those of the fp16 weights.

    Raises:
        OSError: the folder cannot be written.
    """
    metadata = BundleMetadata(
        name=recipe.name,
        architecture=recipe.architecture,
        labels=data.labels,
        preprocessing=recipe.preprocessing,
        postprocessing=recipe.postprocessing,
        precision="fp16",
        source=data.source,
        accuracy=None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        raw = write_bundle(Path(scratch), metadata, network, reference_answer)
        found = fit_calibration(Predictor(raw, torch.device("cpu")), raw.config, data.held_out)
        if found is not None:
            try:
                apply_calibration(network, recipe.architecture, found)
            except ValueError as error:  # of a network that has learned little
                logger.warning("the scores are not calibrated: %s", error)
        calibrated = write_bundle(Path(scratch), metadata, network, reference_answer)
        metrics = measure(Predictor(calibrated, torch.device("cpu")), calibrated.config, data.held_out)
    accuracy = Accuracy(metrics=metrics, measured_on=data.measured_on)
    return write_bundle(store, replace(metadata, accuracy=accuracy), network, reference_answer)


def _measured_on(kind: PetsModel, held_out: Sequence[Record]) -> str:
    heads = sum(record.head is not None for record in held_out)
    masks = sum(record.mask is not None for record in held_out)
    counted = {
        PetsModel.BREED: f"all {len(held_out)} photographs",
        PetsModel.HEADS: f"the {heads} photographs with an annotated head",
        PetsModel.OUTLINE: f"the {masks} photographs with a mask",
    }
    return (
        f"{counted[kind]} of fold {HELD_OUT_FOLD} (of five) of Oxford-IIIT Pet's trainval part, shorter side 256 "
        "px; this fold was held out of the training of all three pets models, but used to choose among recipes and "
        "to calibrate the scores; it is not the official test part"
    )
