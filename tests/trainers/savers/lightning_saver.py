"""Trains a classifier for a step and writes it with Lightning's ModelCheckpoint: `python lightning_saver.py FOLDER`.

`plain.ckpt` is of a plain training, `average.ckpt` of one with a moving average.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytorch_lightning as lightning
import torch
from torch import Tensor

from tests.model.tiny_models import tiny_network

folder = Path(sys.argv[1])


class Classifier(lightning.LightningModule):
    def __init__(self, class_names: list[str], output: Path, started: datetime.datetime) -> None:  # noqa: ARG002
        super().__init__()
        self.save_hyperparameters()
        self.model = tiny_network("classifier")
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(len(class_names)))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss: Tensor = self.criterion(self.model(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


pictures = torch.utils.data.TensorDataset(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
for name in ("plain", "average"):
    callbacks = [lightning.callbacks.ModelCheckpoint(dirpath=str(folder), filename=name)]
    if name == "average":
        callbacks.append(lightning.callbacks.EMAWeightAveraging(decay=0.5))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=callbacks
    )
    network = Classifier(list("abcde"), folder, datetime.datetime.now(datetime.UTC))
    trainer.fit(network, torch.utils.data.DataLoader(pictures, batch_size=2))
