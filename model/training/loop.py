"""The training loop of all tasks: warm-up, plateau and decay, EMA, checkpoints, a log line each epoch.

The optimisers are AdamW and Muon.

All randomness of a step comes from a generator seeded by the recipe's seed and the step's number, so a killed run
resumes from its last checkpoint to the same weights.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.types import IntArray

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length, learning rate and optimisation. `bf16` trades exact repeatability across machines for speed.

    The rate is constant from the warm-up to the last `decay_epochs`, so a training can be shortened or extended from a
    checkpoint of before the decay.
    """

    epochs: int
    decay_epochs: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    ema_decay: float
    clip_norm: float
    evaluate_every: int
    checkpoint_minutes: float = 3.0
    seed: int = 0
    bf16: bool = True


def scaled(schedule: Schedule, epochs: int) -> Schedule:
    """A schedule of another length: warm-up and decay keep their shares of it."""
    share = epochs / schedule.epochs
    return replace(
        schedule,
        epochs=epochs,
        warmup_epochs=schedule.warmup_epochs * share,
        decay_epochs=schedule.decay_epochs * share,
    )


class Training(Protocol):
    """A task, as the training loop needs it."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def examples(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def loss(self, indices: IntArray, rng: np.random.Generator, progress: float) -> Tensor:
        """The scalar loss of the examples at `indices`; `progress` is the share of steps done, 0 to 1."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Metrics on the held-out examples."""
        ...


@dataclass(slots=True)
class _State:
    module: nn.Module
    averaged: nn.Module
    optimisers: tuple[torch.optim.Optimizer, ...]
    step: int = 0

    def save(self, path: Path) -> None:
        """Write atomically: a kill leaves the previous checkpoint intact."""
        parts = {
            "module": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
        }
        partial = path.with_suffix(".partial")
        torch.save(parts, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Raises ValueError: the checkpoint cannot be read, or is of another network."""
        try:
            parts = torch.load(path, weights_only=True, map_location="cpu")
            self.module.load_state_dict(parts["module"])
            self.averaged.load_state_dict(parts["averaged"])
            for optimiser, saved in zip(self.optimisers, parts["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step = parts["step"]
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{path} cannot be resumed: it is cut off, or of another network ({reason}); remove it to train from "
                "the start"
            ) from error


def run(training: Training, schedule: Schedule, out_dir: Path, stop_after: int | None = None) -> nn.Module:
    """Train from the checkpoint in `out_dir`, or from the start; return the averaged module.

    `stop_after` is the total number of steps after which the run ends early, with a checkpoint.

    Raises:
        OSError: checkpoint or log cannot be written.
        ValueError: there are fewer examples than a batch needs, or the checkpoint is of another training.
        FloatingPointError: the loss is no longer finite.
    """
    if training.examples < schedule.batch_size:
        raise ValueError(f"there are {training.examples} examples, fewer than a batch of {schedule.batch_size}")
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = out_dir / CHECKPOINT_FILE
    module = training.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(module).eval().requires_grad_(False)
    state = _State(module, averaged, optimisers(module, schedule.learning_rate, schedule.weight_decay))
    if checkpoint.exists():
        state.load(checkpoint)
    steps_an_epoch = training.examples // schedule.batch_size
    total = steps_an_epoch * schedule.epochs
    logger.info("%s: from step %d of %d, on %s", out_dir.name, state.step, total, training.device)
    end = total if stop_after is None else min(stop_after, total)
    saved = epoch_began = time.monotonic()
    cpu_began = time.process_time()
    losses: list[float] = []
    module.train()
    while state.step < end:
        losses.append(_step(training, schedule, state, steps_an_epoch, total))
        if time.monotonic() - saved > schedule.checkpoint_minutes * 60:
            state.save(checkpoint)
            saved = time.monotonic()
        if state.step % steps_an_epoch == 0:
            epoch = state.step // steps_an_epoch
            line: dict[str, float] = {"epoch": epoch, "loss": round(sum(losses) / len(losses), 5)}
            line["images_per_second"] = round(len(losses) * schedule.batch_size / (time.monotonic() - epoch_began), 1)
            line["cpu_seconds"] = round(time.process_time() - cpu_began, 1)
            if epoch % schedule.evaluate_every == 0 or state.step == total:
                line |= evaluate(training, state.averaged, schedule.bf16)
            with (out_dir / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            logger.info("%s: epoch %d of %d: %s", out_dir.name, epoch, schedule.epochs, line)
            losses, epoch_began, cpu_began = [], time.monotonic(), time.process_time()
    state.save(checkpoint)
    return state.averaged


def evaluate(training: Training, module: nn.Module, bf16: bool) -> dict[str, float]:
    with torch.inference_mode(), torch.autocast(training.device.type, torch.bfloat16, enabled=bf16):
        return training.evaluate(module)


def _step(training: Training, schedule: Schedule, state: _State, steps_an_epoch: int, total: int) -> float:
    epoch, position = divmod(state.step, steps_an_epoch)
    order = np.random.default_rng((schedule.seed, 0, epoch)).permutation(training.examples)
    indices = order[position * schedule.batch_size : (position + 1) * schedule.batch_size]
    for group in (group for optimiser in state.optimisers for group in optimiser.param_groups):
        group["lr"] = learning_rate(schedule, state.step / steps_an_epoch)
    with torch.autocast(training.device.type, torch.bfloat16, enabled=schedule.bf16):
        rng = np.random.default_rng((schedule.seed, 1, state.step))
        loss = training.loss(indices, rng, state.step / total)
    state.module.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.module.parameters(), schedule.clip_norm)
    for optimiser in state.optimisers:
        optimiser.step()
    state.step += 1
    _average(state, schedule.ema_decay)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at step {state.step}; lower the learning rate")
    return value


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """Linear warm-up to the peak rate, then linear decay to a hundredth of it over the last `decay_epochs`."""
    rise = (epoch + 0.05) / (schedule.warmup_epochs + 0.05)
    fall = max((schedule.epochs - epoch) / schedule.decay_epochs, 0.01)
    return schedule.learning_rate * min(1.0, rise, fall)


@torch.no_grad()
def _average(state: _State, decay: float) -> None:
    """Exponential moving average of parameters and BatchNorm statistics, faster in the first steps."""
    weight = 1 - min(decay, (1 + state.step) / (10 + state.step))
    current = state.module.state_dict()
    for name, average in state.averaged.state_dict().items():
        if average.is_floating_point():
            average.lerp_(current[name], weight)
        else:
            average.copy_(current[name])


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that moves singular values towards 1 (K. Jordan et al., "Muon", 2024)."""
ITERATIONS = 5
MOMENTUM = 0.95
ADAMW_LAYERS = ("head", "maps", "retina_cls", "retina_reg", "conv_seg", "fc3")
"""Output layers; AdamW trains them, as Muon's authors advise. `fc3` of RepMLPNet maps positions to positions: a step of
Muon would take longer than its gradient."""


class Muon(torch.optim.Optimizer):
    """Muon: orthogonalised Nesterov momentum, for matrices, and convolutions as (out, in·h·w).

    Steps are scaled to AdamW's usual size (arXiv 2502.16982, section 2.2), so that both share learning rate and weight
    decay. torch.optim.Muon does not support convolutions.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the gradients. `closure` is required by torch's interface and must be None.

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
        """Parameters and their momenta as matrices, by shape; equal shapes are orthogonalised together."""
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
    """Matrices (N, R, C) → float32 (N, R, C) with the same singular vectors and singular values near 1."""
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
    """Muon for weights that map many channels to many; AdamW for the others, without decay for biases, norms and
    tables of positions.

    The others are depthwise and first-layer filters, and `ADAMW_LAYERS`.
    """
    muon, decayed, plain = [], [], []
    for name, parameter in module.named_parameters():
        *_, layer, kind = ("", *name.split("."))
        if parameter.ndim == 1 or kind != "weight":
            plain.append(parameter)
        elif parameter.shape[1] > 3 and layer not in ADAMW_LAYERS:
            muon.append(parameter)
        else:
            decayed.append(parameter)
    adam_groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return Muon(muon, learning_rate, weight_decay), torch.optim.AdamW(adam_groups, lr=learning_rate)
