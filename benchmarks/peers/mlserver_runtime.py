"""MLServer: a custom runtime, adaptive batching, a process for each copy of the network; base64 pictures in JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.classifier import Classifier, PeerSettings

settings = PeerSettings.from_environment()


class ConvMLP(MLModel):
    async def load(self) -> bool:
        self.classifier = Classifier(settings)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = [self.classifier.decode(jpeg) for jpeg in Base64Codec.decode_input(payload.inputs[0])]
        indices = np.array([row["indices"] for row in self.classifier.classify(inputs)], np.int64)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("indices", indices)])


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="bench-mlserver-"))
    ports = {"http_port": settings.port, "grpc_port": settings.port + 1, "metrics_port": settings.port + 2}
    server = {"debug": False, "host": "127.0.0.1", "metrics_endpoint": None, "gzip_enabled": False, **ports}
    (folder / "settings.json").write_text(json.dumps({**server, "parallel_workers": settings.workers}))
    model = {"name": "convmlp", "implementation": "benchmarks.peers.mlserver_runtime.ConvMLP"}
    batching = {"max_batch_size": settings.batch, "max_batch_time": settings.wait_ms / 1000}
    (folder / "model-settings.json").write_text(json.dumps({**model, **batching}))
    os.execv(Path(sys.executable).parent / "mlserver", ["mlserver", "start", str(folder)])
