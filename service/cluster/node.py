"""One machine of a cluster: Ray's processes, in the foreground, with the environment that the service needs.

Nothing here imports Ray.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from service.cluster.environment import node_environment

HEAD_PORT = 6379


@dataclass(frozen=True, slots=True)
class Node:
    """A machine. Without the `head`'s HOST:PORT it is the head. None: as Ray finds on the machine."""

    head: str | None = None
    port: int = HEAD_PORT
    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    temp_dir: Path | None = None
    slow: bool = False

    def command(self) -> list[str]:
        """`ray start`, which runs until a signal."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        if self.head is None:
            command += ["--head", f"--port={self.port}", "--include-dashboard=false"]
            if self.temp_dir is not None:
                command.append(f"--temp-dir={self.temp_dir}")
        else:
            command.append(f"--address={self.head}")
        for flag, value in (("node-ip-address", self.address), ("num-cpus", self.cpus), ("num-gpus", self.gpus)):
            if value is not None:
                command.append(f"--{flag}={value}")
        if self.resources:
            command.append(f"--resources={json.dumps(dict(self.resources))}")
        return command

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The environment of Ray's processes; what the operator set in `own` is left as it is."""
        return {**node_environment(slow=self.slow), **own}

    def run(self) -> NoReturn:
        """Become Ray's process: signals and the exit status are its own."""
        command = self.command()
        os.execve(command[0], command, self.environment(os.environ))
