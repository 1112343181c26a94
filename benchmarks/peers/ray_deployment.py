"""Ray Serve: a batching deployment, a replica for each copy of the network, computing in a thread beside its loop."""

from __future__ import annotations

import asyncio
import os
import signal

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.classifier import Classes, Classifier, PeerSettings

settings = PeerSettings.from_environment()


class ConvMLP:
    def __init__(self) -> None:
        self.classifier = Classifier(settings)

    def work(self, jpegs: list[bytes]) -> list[Classes]:
        return self.classifier.classify([self.classifier.decode(jpeg) for jpeg in jpegs])

    @serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.wait_ms / 1000)
    async def classify(self, jpegs: list[bytes]) -> list[Classes]:
        return await asyncio.to_thread(self.work, jpegs)

    async def __call__(self, request: Request) -> Classes:
        return await self.classify(await request.body())


DEPLOYMENT = serve.deployment(
    ConvMLP,
    num_replicas=settings.workers,
    max_ongoing_requests=256,
    max_queued_requests=2048,
    ray_actor_options={"num_cpus": 0},
)

if __name__ == "__main__":
    passed = {name: value for name, value in os.environ.items() if name.startswith("BENCH_") or name == "PYTHONPATH"}
    passed["OMP_NUM_THREADS"] = str(settings.threads)  # Ray would set it to the actor's num_cpus
    ray.init(
        num_cpus=max(2, settings.workers),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        runtime_env={"env_vars": passed},
    )
    quiet = {"enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port}, logging_config=quiet)
    serve.run(DEPLOYMENT.bind(), route_prefix="/predict", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
