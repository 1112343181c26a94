"""LitServe: a batched LitAPI, an inference process for each copy of the network, which decodes as well.

Annotations are evaluated here, because LitServe passes them to FastAPI unevaluated.
"""

from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body

from benchmarks.peers.classifier import Classes, Classifier, PeerSettings
from model.types import UInt8Array

settings = PeerSettings.from_environment()


class ConvMLP(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002  (LitServe's signature)
        self.classifier = Classifier(settings)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> UInt8Array:
        return self.classifier.decode(request)

    def batch(self, inputs: list[UInt8Array]) -> UInt8Array:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:  # noqa: ANN401  (one input, or a batch of them)
        return self.classifier.classify(list(x)) if x.ndim == 4 else self.classifier.classify([x])[0]

    def unbatch(self, output: list[Classes]) -> list[Classes]:
        return output

    def encode_response(self, output: Classes) -> Classes:
        return output


if __name__ == "__main__":
    api = ConvMLP(max_batch_size=settings.batch, batch_timeout=settings.wait_ms / 1000)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=settings.workers, timeout=60, fast_queue=True
    )
    server.run(host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="warning", access_log=False)
