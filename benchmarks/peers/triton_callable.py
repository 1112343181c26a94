"""NVIDIA's Triton by way of PyTriton: its dynamic batcher in front of a Python process for each copy of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.classifier import Classifier, PeerSettings

settings = PeerSettings.from_environment()


def make_callable() -> Callable[..., Any]:
    classifier = Classifier(settings)

    @batch
    def infer(image: Any) -> dict[str, Any]:  # noqa: ANN401  (an array of bytes objects)
        rows = classifier.classify([classifier.decode(jpeg) for jpeg in image[:, 0]])
        return {"indices": np.array([row["indices"] for row in rows], np.int64)}

    return infer


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=settings.port,
        http_thread_count=4,
        grpc_address="127.0.0.1",
        grpc_port=settings.port + 1,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            "convmlp",
            infer_func=[make_callable() for _ in range(settings.workers)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="indices", dtype=np.int64, shape=(5,))],
            config=ModelConfig(
                max_batch_size=settings.batch,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(settings.wait_ms * 1000)),
            ),
        )
        triton.serve()
