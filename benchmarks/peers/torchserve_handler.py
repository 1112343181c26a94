"""TorchServe: a handler that decodes and runs what its front batched, a worker process for each copy of the network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.classifier import Classes, Classifier, PeerSettings

settings = PeerSettings.from_environment()


class ConvMLP:
    def initialize(self, context: Any) -> None:  # noqa: ANN401, ARG002  (TorchServe's signature)
        self.classifier = Classifier(settings)
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Classes]:  # noqa: ANN401, ARG002
        jpegs = [bytes(row.get("data") or row["body"]) for row in data]
        return self.classifier.classify([self.classifier.decode(jpeg) for jpeg in jpegs])


# A handler must be a class of the archived file itself.
HANDLER = """from benchmarks.peers.torchserve_handler import ConvMLP
class Handler(ConvMLP): pass
"""


def main() -> None:
    folder, binaries = Path(tempfile.mkdtemp(prefix="bench-torchserve-")), Path(sys.executable).parent
    workers, wait_ms = settings.workers, max(1, round(settings.wait_ms))
    (folder / "model.yaml").write_text(
        f"minWorkers: {workers}\nmaxWorkers: {workers}\nbatchSize: {settings.batch}\nmaxBatchDelay: {wait_ms}\n"
        "responseTimeout: 60\nstartupTimeout: 120\n"
    )
    (folder / "handler.py").write_text(HANDLER)
    archiver = [str(binaries / "torch-model-archiver"), "--model-name", "convmlp", "--version", "1", "--force"]
    archiver += ["--export-path", str(folder), "--handler", str(folder / "handler.py")]
    subprocess.run([*archiver, "--config-file", str(folder / "model.yaml")], check=True)
    addresses = [f"{name}_address=http://127.0.0.1:{settings.port + at}" for at, name in enumerate(ADDRESSES)]
    others = [f"grpc_{name}_port={settings.port + 3 + at}" for at, name in enumerate(ADDRESSES[:2])]
    (folder / "config.properties").write_text("\n".join([*addresses, *others, *PROPERTIES]) + "\n")
    (folder / "log4j2.xml").write_text(LOGGING)
    logs = str(folder / "logs")
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "LOG_LOCATION": logs,
        "METRICS_LOCATION": logs,
    }
    command = [str(binaries / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth"]
    command += ["--model-store", str(folder), "--models", "convmlp=convmlp.mar"]
    command += ["--ts-config", str(folder / "config.properties"), "--log-config", str(folder / "log4j2.xml")]
    os.chdir(folder)
    os.execve(command[0], command, environment)


ADDRESSES = ("inference", "management", "metrics")
PROPERTIES = ("job_queue_size=2048", "number_of_netty_threads=2", "disable_system_metrics=true")
LOGGING = (
    '<Configuration><Appenders><Console name="C"/></Appenders>'
    '<Loggers><Root level="error"><AppenderRef ref="C"/></Root></Loggers></Configuration>'
)

if __name__ == "__main__":
    main()
