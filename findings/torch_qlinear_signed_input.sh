#!/usr/bin/env bash
# torch 2.13.0 on x86 with AVX-512 VNNI and without AMX: onednn.qlinear_pointwise is hundreds of times slower for signed input.
#
# The operator takes activations as uint8 or as int8. With uint8 oneDNN runs an int8 kernel; with int8 the same product takes
# hundreds to thousands of times as long on these processors, as from a reference implementation. There is no warning, and both
# results are right. A network that is quantised symmetrically, with signed activations, is then far slower than in float32.
# On other processors the script ends without a verdict.
set -euo pipefail
if ! grep -qw avx512_vnni /proc/cpuinfo || grep -qw amx_int8 /proc/cpuinfo; then
  echo "this processor has no AVX-512 VNNI, or has AMX: nothing to see"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
rows, inputs, outputs = 784, 128, 256
weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
scales, zeros = torch.full((outputs,), 0.01), torch.zeros(outputs, dtype=torch.int64)
packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inputs])


def run(x, zero_point):
    return torch.ops.onednn.qlinear_pointwise(
        x, 0.01, zero_point, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def best_s(x, zero_point):
    found = []
    for _ in range(3):
        started = time.perf_counter()
        run(x, zero_point)
        found.append(time.perf_counter() - started)
    return min(found)


signed = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
unsigned = (signed.int() + 128).to(torch.uint8)
exact = (signed.double() @ weight.double().t() * 1e-4).float()
for x, zero_point in ((unsigned, 128), (signed, 0)):
    assert torch.allclose(run(x, zero_point), exact, atol=1e-3)
fast, slow = best_s(unsigned, 128), best_s(signed, 0)
print("torch", torch.__version__)
print(f"uint8 {fast * 1e3:.2f} ms, int8 {slow * 1e3:.2f} ms: {slow / fast:.0f} times as long")
assert slow > 20 * fast, "signed input is no longer slow"
PYTHON
