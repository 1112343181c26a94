"""Training of the embedded models: from photographs to a bundle with its measured accuracy and its sources."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
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
from model.training.data import HELD_OUT_FOLD, SPECIES, PetIndex, Record, load_photographs, read_index
from model.training.detect import DetectRecipe, HeadTraining
from model.training.evaluate import measure
from model.training.loop import Training, run, scaled
from model.training.recipes import RECIPES, PetsModel, Recipe
from model.training.segment import OUTLINE_LABELS, OutlineTraining
from model.types import Task


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
    """Train one of the pets models, from its checkpoint if there is one; measure it; write its bundle.

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
    schedule = recipe.schedule if epochs is None else scaled(recipe.schedule, epochs)
    index = read_index(data_dir)
    torch.manual_seed(schedule.seed)
    labels = {PetsModel.BREED: index.breeds, PetsModel.HEADS: SPECIES, PetsModel.OUTLINE: OUTLINE_LABELS}[kind]
    training = _training(recipe, index, len(labels), backbone_from)
    folder = f"{recipe.variant}_{kind.value}" if recipe.variant else kind.value
    averaged = run(training, schedule, out_dir / folder, stop_after)
    network: nn.Module = averaged.classifier if isinstance(averaged, BreedNet) else averaged
    return export(recipe, network.cpu(), labels, index.held_out(), out_dir / "bundles", command)


def _training(recipe: Recipe, index: PetIndex, num_classes: int, backbone_from: Path | None) -> Training:
    data = (load_photographs(index.training()), load_photographs(index.held_out()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(recipe.examples, ClassifyRecipe):
        module = BreedNet(recipe.architecture.backbone, num_classes, maps=recipe.examples.map_weight > 0)
        return BreedTraining(recipe.examples, module.to(device), *data)
    network = build_network(recipe.architecture, num_classes)
    assert isinstance(network, RetinaNet | SemanticFPN)
    if backbone_from is None:
        initialise(network.backbone)
    else:
        copy_backbone(read_bundle(backbone_from), recipe.architecture.backbone, network.backbone)
    if isinstance(recipe.examples, DetectRecipe):
        assert isinstance(network, RetinaNet)
        return HeadTraining(recipe.examples, network.to(device), *data)
    assert isinstance(network, SemanticFPN)
    return OutlineTraining(recipe.examples, network.to(device), *data)


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


def export(
    recipe: Recipe,
    network: nn.Module,
    labels: Sequence[str],
    held_out: Sequence[Record],
    store: Path,
    command: str,
) -> Bundle:
    """Calibrate, measure and write the bundle `store`/`recipe.name`, with fp16 weights.

    Calibration changes the network's last layer. The metrics are those of the fp16 weights.

    Raises:
        OSError: the folder cannot be written.
    """
    trained = recipe.variant or "ConvMLP"
    metadata = BundleMetadata(
        name=recipe.name,
        architecture=recipe.architecture,
        labels=tuple(labels),
        preprocessing=recipe.preprocessing,
        postprocessing=recipe.postprocessing,
        precision="fp16",
        source=Source(
            description=f"{trained} trained from scratch on the Oxford-IIIT Pet dataset by `{command}`",
            url=URL,
            licence=LICENCE,
            attribution=ATTRIBUTION,
        ),
        accuracy=None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        raw = write_bundle(Path(scratch), metadata, network, reference_answer)
        found = fit_calibration(Predictor(raw, torch.device("cpu")), raw.config, held_out)
        if found is not None:
            apply_calibration(network, recipe.architecture, found)
        calibrated = write_bundle(Path(scratch), metadata, network, reference_answer)
        metrics = measure(Predictor(calibrated, torch.device("cpu")), calibrated.config, held_out)
    accuracy = Accuracy(metrics=metrics, measured_on=_measured_on(raw.config.task, held_out))
    return write_bundle(store, replace(metadata, accuracy=accuracy), network, reference_answer)


def _measured_on(task: Task, held_out: Sequence[Record]) -> str:
    counted = {
        Task.CLASSIFY: f"all {len(held_out)} photographs",
        Task.DETECT: f"the {sum(record.head is not None for record in held_out)} photographs with an annotated head",
        Task.SEGMENT: f"the {sum(record.mask is not None for record in held_out)} photographs with a mask",
    }
    return (
        f"{counted[task]} of fold {HELD_OUT_FOLD} (of five) of Oxford-IIIT Pet's trainval part, shorter side 256 "
        "px; this fold was held out of the training of all three pets models, but used to choose among recipes and "
        "to calibrate the scores; it is not the official test part"
    )
