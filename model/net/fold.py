"""Batch norm folded into the preceding convolution: at test time both are linear."""

from __future__ import annotations

import torch
from torch import nn

from model.net.layers import ConvModule


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> None:
    """Fold, in place, every batch norm of a network in evaluation mode.

    With running mean m and variance v the pair computes scale · (W x + b - m) + shift, scale = weight / √(v + eps),
    which is a convolution of weight scale · W and bias scale · (b - m) + shift (arXiv 1712.05877, section 3.2).
    This is exact except for the rounding of the new weight and bias, which are computed in float64.

    Batch norms become identities and their convolutions get a bias. Load the weights first: state dicts no longer
    fit. Fold before converting to half precision, or its rounding is folded too.

    Raises:
        ValueError: the network is in training mode, or a batch norm does not directly follow a convolution of as
            many channels.
    """
    for name, parent in list(network.named_modules()):
        previous: nn.Module | None = None
        for key, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                # Only these compute their children in order.
                in_order = isinstance(parent, nn.Sequential | ConvModule)
                if not (in_order and isinstance(previous, nn.Conv2d) and previous.out_channels == module.num_features):
                    raise ValueError(f"batch norm {name}.{key} does not follow a convolution of its channels")
                if module.training:
                    raise ValueError(f"batch norm {name}.{key} is in training mode; call eval() on the network first")
                _fold(previous, module)
                setattr(parent, key, nn.Identity())
            previous = module


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = norm.running_mean.double()
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    offset = mean if conv.bias is None else mean - conv.bias.double()
    bias = norm.bias.double() - scale * offset
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
