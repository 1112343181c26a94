"""Batch norm folded into the convolution or linear layer beside it: at test time both are linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.net.layers import ChainedModule, UnfoldedBatchNorm2d, chains_of


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> None:
    """Fold, in place, every batch norm of a network in evaluation mode, except `UnfoldedBatchNorm2d`.

    With running mean m and variance v the norm computes scale · (x - m) + shift, scale = weight / √(v + eps). After a
    convolution W x + b the pair is a convolution of weight scale · W and bias scale · (b - m) + shift (arXiv
    1712.05877, section 3.2). Before a linear layer, or a convolution without padding, scale multiplies the weight's
    input channels instead. This is exact except for the rounding of the new weight and bias, which are computed in
    float64.

    Batch norms become identities and their neighbours get a bias. Load the weights first: state dicts no longer fit.
    Fold before converting to half precision, or its rounding is folded too.

    Raises:
        ValueError: the network is in training mode, or a batch norm is not beside a layer that can take it over.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:
            raise ValueError(f"batch norm {name} is in training mode; call eval() on the network first")
    for parent in list(network.modules()):
        for chain in chains_of(parent):
            _fold_chain(parent, chain)
    for module in network.modules():
        if isinstance(module, ChainedModule):
            module.after_folding()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not isinstance(module, UnfoldedBatchNorm2d):
            raise ValueError(
                f"batch norm {name} does not follow a convolution of its channels, nor precede one without padding"
            )


def _fold_chain(parent: nn.Module, chain: tuple[str, ...]) -> None:
    for at, key in enumerate(chain):
        norm = parent.get_submodule(key)
        if not isinstance(norm, nn.BatchNorm2d) or isinstance(norm, UnfoldedBatchNorm2d):
            continue
        before = parent.get_submodule(chain[at - 1]) if at > 0 else None
        after = parent.get_submodule(chain[at + 1]) if at + 1 < len(chain) else None
        if isinstance(before, nn.Conv2d) and before.out_channels == norm.num_features:
            _fold_into_previous(before, norm)
        elif _takes_norm(after, norm):
            assert isinstance(after, nn.Conv2d | nn.Linear)
            fold_into_next(norm, after)
        else:
            continue
        parent.set_submodule(key, nn.Identity())


def _takes_norm(layer: nn.Module | None, norm: nn.BatchNorm2d) -> bool:
    """Whether a layer can take over the norm before it: it has its channels, and pads with no zeros."""
    if isinstance(layer, nn.Linear):
        return layer.in_features == norm.num_features
    return (
        isinstance(layer, nn.Conv2d)
        and layer.in_channels == norm.num_features
        and layer.groups == 1
        and layer.padding == (0, 0)
    )


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The norm of x as x · scale + shift, float64 (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _fold_into_previous(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    scale, shift = scale_and_shift(norm)
    bias = shift if conv.bias is None else shift + scale * conv.bias.double()
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)


def fold_into_next(norm: nn.BatchNorm2d, layer: nn.Conv2d | nn.Linear, repeats: int = 1) -> None:
    """Let a linear layer, or a convolution without padding, take over the norm before it.

    `repeats`: how many of the layer's input channels in a row are values of one channel of the norm.
    """
    scale, shift = (values.repeat_interleave(repeats) for values in scale_and_shift(norm))
    weight = layer.weight.double()
    taps = weight.flatten(2).sum(dim=2) if weight.ndim > 2 else weight
    bias = taps @ shift if layer.bias is None else taps @ shift + layer.bias.double()
    layer.weight.copy_(weight * scale.view(1, -1, *(1,) * (weight.ndim - 2)))
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
