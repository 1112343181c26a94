"""Checkpoint files as people have them."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.model.net.tiny import tiny_network


def tiny_checkpoint(folder: Path, family: str, name: str = "mine.pth") -> Path:
    """A tiny network's state dict, bare for a classifier, else with a toolbox's wrapping."""
    path = folder / name
    tensors = tiny_network(family).state_dict()
    if family == "classifier":
        torch.save(tensors, path)
    else:
        # What mmcv leaves in the file: more than weights, yet plain values all of it.
        meta = {"mmcv_version": "1.4.8", "config": "model = dict()", "epoch": 12, "hook_msgs": {}}
        torch.save({"meta": meta, "state_dict": tensors, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path
