"""Writes a classifier with timm's own CheckpointSaver: `python timm_saver.py FOLDER`."""

from __future__ import annotations

import argparse
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.model.tiny_models import tiny_network

folder = Path(sys.argv[1])
if find_spec("torchvision") is None:
    # timm imports one class of it, which its savers do not use.
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.BatchNorm2d  # type: ignore[attr-defined]
    for name in ("timm", "timm.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(entry) / name.replace(".", "/")) for entry in sys.path]
        sys.modules[name] = package

from timm.utils.checkpoint_saver import CheckpointSaver  # noqa: E402
from timm.utils.model_ema import ModelEmaV2  # noqa: E402

network = tiny_network("classifier")
average = ModelEmaV2(network, decay=0.9)
with torch.no_grad():
    average.module.head.bias.fill_(1.0)
saver = CheckpointSaver(
    network,
    torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    args=argparse.Namespace(
        model="convmlp_s", img_size=192, input_size=None, crop_pct=0.9, mean=None, std=None, output=Path("out")
    ),
    model_ema=average,
    checkpoint_dir=str(folder),
    recovery_dir=str(folder),
)
saver.save_checkpoint(0, metric=0.7)
