"""The networks that servers are compared on, all of the same weights."""

from __future__ import annotations

from enum import StrEnum

import torch

from model.bundle import Bundle
from model.precision import Precision, make_predictor
from model.predictor import Predictor, load_network


class Kind(StrEnum):
    EAGER = "eager"
    """fp32, as a user of torch would run it."""
    FP32 = "fp32-fastest"
    """fp32, as this project runs it at its fastest."""
    FASTEST = "fastest"
    """At its fastest, in the precision that this project chooses on this machine."""


def precision_of(kind: Kind, chosen: Precision) -> Precision:
    """How a network is run; `chosen` is the fastest precision on this machine."""
    return {Kind.EAGER: Precision.EXACT, Kind.FP32: Precision.FP32, Kind.FASTEST: chosen}[kind]


def load(precision: Precision, bundle: Bundle) -> Predictor:
    """A bundle's network on the CPU. It computes on as many threads as `torch.set_num_threads` says."""
    return make_predictor(bundle, torch.device("cpu"), precision, load_network(bundle))
