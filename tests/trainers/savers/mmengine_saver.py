"""Trains a RetinaNet and writes it with mmengine's Runner and EMAHook: `python mmengine_saver.py FOLDER`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner

from tests.model.tiny_models import tiny_network


class Detector(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        network: Any = tiny_network("retinanet")
        self.backbone, self.neck, self.bbox_head = network.backbone, network.neck, network.bbox_head

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        return self.bbox_head.retina_cls.bias.sum()

    def train_step(self, _: object, optim_wrapper: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        loss = self()
        optim_wrapper.update_params(loss)
        return {"loss": loss}


class Pictures(torch.utils.data.Dataset[dict[str, int]]):
    metainfo = {"classes": tuple("abcde"), "palette": [(120, 20, level) for level in range(5)]}  # noqa: RUF012

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


pipeline = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (640, 480), "keep_ratio": True}]
Runner(
    model=Detector(),
    work_dir=sys.argv[1],
    train_dataloader={"dataset": Pictures(), "batch_size": 1, "sampler": {"type": "DefaultSampler", "shuffle": False}},
    train_cfg={"by_epoch": True, "max_epochs": 1},
    optim_wrapper={"optimizer": {"type": "SGD", "lr": 1.0, "momentum": 0.9}},
    custom_hooks=[{"type": "EMAHook", "momentum": 0.1}],
    cfg=Config(
        {
            "test_dataloader": {"dataset": {"pipeline": pipeline}},
            "model": {
                "data_preprocessor": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "bgr_to_rgb": True},
                "test_cfg": {"nms_pre": 100, "score_thr": 0.2, "nms": {"type": "nms", "iou_threshold": 0.4}},
            },
        }
    ),
    experiment_name="test",
).train()
