#!/usr/bin/env bash
# torch 2.13.0: torch.onnx.export(dynamo=True) drops a dynamic axis that was asked for, without an error.
#
# Where the code fixes the size of an axis, as `len(x)` does, torch.export refuses `dynamic_shapes` with a message that names the
# axis. torch.onnx.export takes the same argument, tries again without it, and writes a file for the example's batch only. The
# first one to notice is ONNX Runtime, with another batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2
cd "$folder"
"$folder/venv/bin/python" - 2>log <<'PYTHON'
import torch


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1) * 2


example = (torch.zeros(2, 3, 4),)
shapes = {"x": {0: torch.export.Dim("batch")}}
try:
    torch.export.export(Flat(), example, dynamic_shapes=shapes)
    refused = False
except Exception as error:
    refused = "marked batch as dynamic" in str(error)
program = torch.onnx.export(Flat(), example, dynamo=True, verbose=False, dynamic_shapes=shapes)
axis = program.model.graph.inputs[0].shape[0]
print(f"torch {torch.__version__}: torch.export refuses: {refused}; the ONNX file's batch: {axis}")
assert refused
assert axis == 2, "the axis stays dynamic, or the exporter reports it, now"
PYTHON
