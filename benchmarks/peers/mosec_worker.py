"""mosec: its Rust front, and a process for each copy of the network, which decodes as well; in front of a single copy a
stage of processes that decode, as in its documentation.
"""

from __future__ import annotations

import sys

import mosec

from benchmarks.peers.classifier import Classes, Classifier, PeerSettings
from model.types import UInt8Array
from service.settings import usable_cores

settings = PeerSettings.from_environment()


class Whole(mosec.Worker):
    def __init__(self) -> None:
        self.classifier = Classifier(settings)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[Classes]:
        return self.classifier.classify([self.classifier.decode(jpeg) for jpeg in data])


class Decoding(mosec.Worker):
    def __init__(self) -> None:
        self.classifier = Classifier(settings, decodes_only=True)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> UInt8Array:
        return self.classifier.decode(data)


class Network(mosec.Worker):
    def __init__(self) -> None:
        self.classifier = Classifier(settings)

    def forward(self, data: list[UInt8Array]) -> list[Classes]:
        return self.classifier.classify(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(settings.port), "--timeout", "60000"]
    sys.argv += ["--log-level", "warning", "--capacity", "2048"]
    server = mosec.Server()
    last: type[mosec.Worker] = Whole
    if settings.workers == 1:
        server.append_worker(Decoding, num=usable_cores())
        last = Network
    wait_ms = max(1, round(settings.wait_ms))
    server.append_worker(last, num=settings.workers, max_batch_size=settings.batch, max_wait_time=wait_ms)
    server.run()
