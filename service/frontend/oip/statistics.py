"""What Triton's statistics extension tells, counted over the requests of this protocol and this front-end alone.

How many times the network ran is the worker's knowledge (`convmlp_batch_size` of its metrics): a batch holds images
of many requests and front-ends. So `execution_count` stays 0 and there are no `batch_stats`.
"""

from __future__ import annotations

import time
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
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def succeeded(self, images: int, seconds: float, timings: Timings) -> None:
        self.images += images
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
            "execution_count": 0,
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
