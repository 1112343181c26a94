"""What Triton's statistics extension tells, counted over the requests of this protocol and this front-end alone.

A batch may hold images of other requests, protocols and front-ends: of how often the network ran each image counts its
part, one over the images that ran with it. `convmlp_batch_size` of the worker's metrics has the whole truth, so there
are no `batch_stats`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.types import Timings


@dataclass(slots=True)
class Duration:
    """How often, and how long in all, in ns."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)

    def told(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelCounts:
    """One model's. A request counts once whatever its number of images; each stage is its slowest image's."""

    images: int = 0
    executions: float = 0.0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def succeeded(self, batches: Sequence[int], seconds: float, timings: Timings) -> None:
        """`batches`: of each image the number of those that ran with it, itself among them."""
        self.images += len(batches)
        self.executions += sum(1 / images for images in batches)
        self.last_ms = round(time.time() * 1000)
        self.success.add(seconds)
        self.queue.add(timings.queue)
        self.compute_input.add(timings.decode)
        self.compute_infer.add(timings.infer)
        self.compute_output.add(timings.post)

    def failed(self, seconds: float) -> None:
        self.last_ms = round(time.time() * 1000)
        self.fail.add(seconds)

    def told(self) -> dict[str, Any]:
        """As the protocol has it."""
        never = Duration().told()
        return {
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": self.success.told(),
                "fail": self.fail.told(),
                "queue": self.queue.told(),
                "compute_input": self.compute_input.told(),
                "compute_infer": self.compute_infer.told(),
                "compute_output": self.compute_output.told(),
                "cache_hit": never,
                "cache_miss": never,
            },
            "batch_stats": [],
        }


class Statistics:
    """By model's name. Only names of served models are asked for, so they are few."""

    def __init__(self) -> None:
        self._models: dict[str, ModelCounts] = {}

    def of(self, model: str) -> ModelCounts:
        return self._models.setdefault(model, ModelCounts())
