"""AdamW and Muon: how gradients become steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The quintic whose iteration pushes all singular values towards 1 (K. Jordan et al., "Muon", 2024)."""
ITERATIONS = 5
MOMENTUM = 0.95
OUTPUT_LAYERS = ("head", "maps", "retina_cls", "retina_reg", "conv_seg")
"""Modules whose weights are the answers' own: AdamW's, as Muon's authors advise."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised before it is applied, for matrices and convolutions as (out, in·h·w).

    Steps are scaled to AdamW's usual size (arXiv 2502.16982, section 2.2), so that both share one learning rate
    and one weight decay. torch's own class of this name takes no convolutions.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the gradients. `closure` is part of torch's interface and must be None.

        Raises:
            ValueError: a closure was given.
        """
        if closure is not None:
            raise ValueError("Muon.step takes no closure; call backward first")
        for group in self.param_groups:
            for shape, members in self._directions(group["params"]).items():
                steps = orthogonalise(torch.stack([direction for _, direction in members]))
                size = group["lr"] * 0.2 * math.sqrt(max(shape))
                for (parameter, _), step in zip(members, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(step.reshape(parameter.shape), alpha=-size)

    def _directions(self, parameters: list[nn.Parameter]) -> dict[torch.Size, list[tuple[nn.Parameter, Tensor]]]:
        """Every parameter with its momentum as a matrix, by shape: equal shapes share one matrix product."""
        by_shape = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momentum = self.state[parameter]["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            direction = torch.lerp(parameter.grad, momentum, MOMENTUM).flatten(1)
            by_shape[direction.shape].append((parameter, direction))
        return by_shape


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C) → float32 of that shape, singular vectors kept, all singular values near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


def optimisers(module: nn.Module, learning_rate: float, weight_decay: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for what maps many channels to many; AdamW for the rest, without decay for biases and norms.

    The rest: filters of one channel (depthwise, and those that read the picture) and layers that end the network.
    """
    muon, decayed, plain = [], [], []
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            plain.append(parameter)
        elif parameter.shape[1] > 3 and name.split(".")[-2] not in OUTPUT_LAYERS:
            muon.append(parameter)
        else:
            decayed.append(parameter)
    adam_groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return Muon(muon, learning_rate, weight_decay), torch.optim.AdamW(adam_groups, lr=learning_rate)
