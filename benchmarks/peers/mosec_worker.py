"""mosec: its Rust front, and a process a core that decodes and runs batches."""

from __future__ import annotations

import sys

import mosec

from benchmarks.peers.classifier import Classes, Classifier, PeerSettings

settings = PeerSettings.from_environment()


class ConvMLP(mosec.Worker):
    def __init__(self) -> None:
        self.classifier = Classifier(settings)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[Classes]:
        return self.classifier.classify([self.classifier.decode(jpeg) for jpeg in data])


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(settings.port), "--timeout", "60000"]
    sys.argv += ["--log-level", "warning", "--capacity", "2048"]
    server = mosec.Server()
    wait_ms = max(1, round(settings.wait_ms))
    server.append_worker(ConvMLP, num=settings.workers, max_batch_size=settings.batch, max_wait_time=wait_ms)
    server.run()
