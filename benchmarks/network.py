"""The networks that servers are compared on, all of the same weights."""

from __future__ import annotations

from enum import StrEnum

import torch

from model.bundle import Bundle
from model.precision import Precision, make_predictor
from model.predictor import Predictor, load_network


class Kind(StrEnum):
    EAGER = "eager"
    """fp32 in plain torch."""
    FP32 = "fp32-fastest"
    """This project's fastest fp32."""
    FASTEST = "fastest"
    """The precision that this project chooses on this machine."""


def precision_of(kind: Kind, chosen: Precision) -> Precision:
    """How a network is run; `chosen` is the fastest precision on this machine."""
    return {Kind.EAGER: Precision.EXACT, Kind.FP32: Precision.FP32, Kind.FASTEST: chosen}[kind]


def load(precision: Precision, bundle: Bundle) -> Predictor:
    """A bundle's network on the CPU. It computes with the threads of `torch.set_num_threads`."""
    return make_predictor(bundle, torch.device("cpu"), precision, load_network(bundle))
