#!/usr/bin/env bash
# mmengine 0.10.7: a checkpoint's `ema_state_dict` has the raw weights, and `state_dict` the averaged ones.
#
# EMAHook swaps the two before a checkpoint is written, so that code that loads `state_dict` gets the average. The raw weights
# then lie under the name of the average, as `module.…` beside its counter of steps. timm and Lightning, among others, store
# the average under a name with `ema` in it: who goes by the name takes the wrong weights here, without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# mmengine asks for opencv-python, which needs a graphics library; the headless package has the same module.
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 mmengine==0.10.7 numpy==2.4.6 \
  opencv-python-headless==5.0.0.93
cd "$folder"
"$folder/venv/bin/python" - 2>log <<'PYTHON'
import importlib.metadata
import logging

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class Model(BaseModel):
    """Its weight is 0 at first; each step subtracts 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode="tensor"):
        return {"loss": self.weight.sum()} if mode == "loss" else self.weight


runner = Runner(
    model=Model(),
    work_dir="work",
    train_dataloader=DataLoader(torch.zeros(4, 1), collate_fn=lambda items: {"inputs": torch.stack(items)}),
    train_cfg={"by_epoch": True, "max_epochs": 1},
    optim_wrapper={"optimizer": {"type": "SGD", "lr": 1.0}},
    custom_hooks=[EMAHook(momentum=0.5)],
    log_level=logging.ERROR,
)
runner.train()
checkpoint = torch.load("work/epoch_1.pth", weights_only=False)
first = checkpoint["state_dict"]["weight"].item()
second = checkpoint["ema_state_dict"]["module.weight"].item()
print(f"mmengine {importlib.metadata.version('mmengine')}, four steps of -1, momentum 0.5")
print(f"state_dict: {first}, ema_state_dict: {second}; the raw weight is -4")
assert second == -4 != first, "the raw weights are under state_dict now"
PYTHON
