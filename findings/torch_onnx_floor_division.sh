#!/usr/bin/env bash
# torch 2.13.0: the tracing ONNX exporter truncates `//` of a negative size, where Python rounds down.
#
# `-(-n // 4) * 4` is the usual way to round a size up to a multiple. With dynamo=False it is exported as a division that rounds
# towards zero, so the file rounds down: of 7 positions 4 are left, without an error or a warning. `(n + 3) // 4 * 4` is
# exported as it is meant.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>log <<'PYTHON'
import io

import numpy as np
import onnxruntime
import torch


class Positions(torch.nn.Module):
    def forward(self, x):
        return torch.arange(-(-x.shape[0] // 4) * 4)


content = io.BytesIO()
torch.onnx.export(
    Positions(), (torch.zeros(7),), content, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
)
session = onnxruntime.InferenceSession(content.getvalue())
expected = [len(Positions()(torch.zeros(n))) for n in (7, 8, 9)]
found = [len(session.run(None, {"x": np.zeros(n, np.float32)})[0]) for n in (7, 8, 9)]
print(f"torch {torch.__version__}: sizes 7, 8, 9 rounded up to multiples of 4: {expected} by torch, {found} by the file")
assert expected == [8, 8, 12]
assert found == [4, 8, 8], "the exporter rounds as Python does now"
PYTHON
