"""Makes Python of a gRPC contract: messages, services, and their types. `make proto` and both builds run this."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# What is compiled, the folder that it is named from (virtual=real, as protoc has it), and where the code goes.
CONTRACTS = {
    "client": (HERE / "convmlp" / "v1" / "vision.proto", str(HERE), ROOT / "client"),
    "service": (
        HERE / "open_inference" / "grpc_predict_v2.proto",
        f"service/frontend/api/oip/generated={HERE / 'open_inference'}",
        ROOT,
    ),
}


def generate(distribution: str) -> None:
    """Write the code of a distribution's contract into its source tree.

    Raises:
        CalledProcessError: protoc refused the contract; its words are on stderr.
    """
    contract, include, out = CONTRACTS[distribution]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # mypy-protobuf's plugins lie beside the interpreter, which an isolated build does not have in its PATH.
    plugins = [
        f"--plugin=protoc-gen-{kind}={path}"
        for kind in ("mypy", "mypy_grpc")
        if (path := Path(sys.executable).parent / f"protoc-gen-{kind}").exists()
    ]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{include}", *plugins, *outputs, str(contract)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or CONTRACTS:
        generate(name)
