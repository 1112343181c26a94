"""The material of all servers: pictures, one ConvMLP-S of 1000 classes, and the right answers.

    FOLDER/pictures/*.jpg                the pictures
    FOLDER/models/convmlp_bench_s/       the bundle
    FOLDER/answers.json                  each picture's class
    FOLDER/mode                          the fastest precision of the model on this machine
    FOLDER/expected/*.json               the right answers of detectors and segmenters (`answers.py`)

The weights are random; speed does not depend on them. But batch norm's statistics are those of the pictures, and the
head is fitted so that each picture has a class of its own, far from the others. So a wrong answer, or another caller's,
is detected in any precision. The same holds for the pictures that select the precision.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor, nn

from model.bundle import Bundle, Source, read_bundle
from model.decode import DecodeLimits, decode_picture
from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES
from model.net.convmlp import ConvMLPClassifier
from model.net.normalise import Normalise
from model.net.weights import BundleMetadata, write_bundle
from model.precision import Precision, select_precision
from model.predictor import load_network, reference_answer
from model.preprocess import prepare_picture
from model.reference import REFERENCE_PICTURE
from model.spec import CenterCropSpec, ClassifyPostSpec, Preprocessing
from model.types import ModelInput, UInt8Array
from service.settings import usable_cores

MODEL = "convmlp_bench_s"
CLASSES = 1000
MARGIN = 20.0
"""Between the logit of a picture's class and all others, before rounding to a precision."""
PREPROCESSING = CenterCropSpec(resize_shorter=248, crop=224)
LIMITS = DecodeLimits(max_bytes=64 << 20, max_pixels=100_000_000)
MAX_PICTURES = 64
TRIALS = 5
SOURCE = Source(description="random weights for benchmarks", url="", licence="none", attribution="")
MADE_PICTURES = 16
MADE_SIZE = (500, 375)
"""Sizes of photographs in common data sets, width first."""


@dataclass(frozen=True, slots=True)
class Material:
    folder: Path

    @property
    def models_dir(self) -> Path:
        return self.folder / "models"

    @property
    def bundle(self) -> Bundle:
        return read_bundle(self.models_dir / MODEL)

    @property
    def expected_dir(self) -> Path:
        return self.folder / "expected"

    def pictures(self) -> list[bytes]:
        """The pictures in the order of their names, like the answers."""
        return [path.read_bytes() for path in sorted((self.folder / "pictures").iterdir())]

    def fastest_precision(self) -> Precision:
        return Precision((self.folder / "mode").read_text(encoding="ascii"))

    def classes(self) -> list[int]:
        return msgspec.json.decode((self.folder / "answers.json").read_bytes(), type=list[int])


def make_material(folder: Path, given: Path | None) -> Material:
    """Create it once. `given` is a folder of JPEG files to use instead of crops of the project's photograph.

    Raises:
        SystemExit: there is no picture in `given`.
    """
    origin = f"{given.resolve() if given else 'made'}, torch {torch.__version__}"
    material, file_version = Material(folder), folder / "origin"
    if file_version.exists() and file_version.read_text(encoding="utf-8") == origin:
        return material
    jpegs = pictures(given)
    for old in (folder / "pictures", material.models_dir, material.expected_dir):
        shutil.rmtree(old, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    for at, data in enumerate(jpegs):
        (folder / "pictures" / f"{at:02}.jpg").write_bytes(data)
    classes = [at * (CLASSES // MAX_PICTURES) for at in range(len(jpegs))]
    inputs = [network_input(data, PREPROCESSING).pixels for data in jpegs]
    metadata = BundleMetadata(
        name=MODEL,
        architecture=ClassifierSpec(backbone=CONVMLP_SIZES["s"]),
        labels=tuple(f"class {at}" for at in range(CLASSES)),
        preprocessing=PREPROCESSING,
        postprocessing=ClassifyPostSpec(),
        precision="fp32",
        source=SOURCE,
        accuracy=None,
    )
    proofs = _proofs()
    more = range(CLASSES - len(proofs), CLASSES)
    network = fitted_network([*inputs, *proofs], [*classes, *more])
    bundle = write_bundle(material.models_dir, metadata, network, reference_answer)
    (folder / "mode").write_text(_fastest_precision(bundle), encoding="ascii")
    (folder / "answers.json").write_bytes(msgspec.json.encode(classes))
    file_version.write_text(origin, encoding="utf-8")
    return material


def pictures(given: Path | None) -> list[bytes]:
    """The JPEG files of a folder, at most `MAX_PICTURES`, or crops of the project's photograph.

    Raises:
        SystemExit: there is no picture in `given`.
    """
    jpegs = list(_given(given) if given else _made())
    if not jpegs:
        raise SystemExit(f"there is no JPEG file in {given}")
    return jpegs


def _fastest_precision(bundle: Bundle) -> Precision:
    """The precision that the service would choose, with more trials: the whole comparison depends on it."""
    torch.set_num_threads(usable_cores())
    cpu = torch.device("cpu")
    trials = [trial for _ in range(TRIALS) for trial in select_precision(bundle, cpu, load_network(bundle)).trials]
    rejected = {trial.precision for trial in trials if trial.mismatch is not None}
    allowed = [trial for trial in trials if trial.precision not in rejected]
    return min(allowed, key=lambda trial: min(trial.rounds)).precision if allowed else Precision.EXACT


def network_input(data: bytes, spec: Preprocessing) -> ModelInput:
    """Encoded picture to network input, as in this service."""
    return prepare_picture(decode_picture(data, LIMITS), spec)


@torch.no_grad()
def fitted_network(inputs: Sequence[UInt8Array], classes: Sequence[int]) -> ConvMLPClassifier:
    """A seeded random ConvMLP-S that gives each input, uint8 (h, w, 3), its class."""
    torch.manual_seed(0)
    network = ConvMLPClassifier(CONVMLP_SIZES["s"], CLASSES).eval()
    x = Normalise(PREPROCESSING)(torch.from_numpy(np.stack(inputs)), None)
    with own_statistics(network):
        for part in x.split(16):
            network(part)
    means: list[Tensor] = []
    hook = network.norm.register_forward_hook(lambda _module, _inputs, out: means.append(out.mean(dim=(1, 2))))
    for part in x.split(16):
        network(part)
    hook.remove()
    # Ridge regression in its dual form: there are fewer pictures than features.
    features = torch.cat(means).double()
    centre = features.mean(dim=0)
    centred = features - centre
    gram = centred @ centred.T
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    targets = torch.zeros(len(gram), CLASSES, dtype=torch.double)
    targets[torch.arange(len(gram)), torch.tensor(classes)] = MARGIN
    weights = (centred.T @ torch.linalg.solve(gram + ridge, targets)).T
    network.head.weight.copy_(weights)
    network.head.bias.copy_(-weights @ centre)
    return network


@contextmanager
def own_statistics(network: nn.Module) -> Iterator[None]:
    """While it is active, batch norm takes its statistics from the network's inputs."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
            module.train()
    yield
    network.eval()


def _proofs() -> list[UInt8Array]:
    """The variants of the reference picture on which precisions are tried: plain, mirrored, half as bright."""
    plain = network_input(REFERENCE_PICTURE.read_bytes(), PREPROCESSING).pixels
    return [plain, plain[:, ::-1].copy(), plain // 2]


def _given(folder: Path) -> Iterator[bytes]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    return (path.read_bytes() for path in files[:MAX_PICTURES])


def _made() -> Iterator[bytes]:
    """Different crops of one photograph, enlarged to a common size."""
    photograph = PIL.Image.open(REFERENCE_PICTURE).convert("RGB")
    width, height = photograph.size
    shares = np.random.default_rng(0)
    for at in range(MADE_PICTURES):
        part = float(shares.uniform(0.6, 0.95))
        left, top = float(shares.uniform(0, 1 - part)) * width, float(shares.uniform(0, 1 - part)) * height
        box = (left, top, left + part * width, top + part * height)
        piece = photograph.resize(MADE_SIZE, PIL.Image.Resampling.BICUBIC, box=box)
        file = BytesIO()
        (PIL.ImageOps.mirror(piece) if at % 2 else piece).save(file, "JPEG", quality=95)
        yield file.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.material", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    make_material(arguments.folder, arguments.pictures)
