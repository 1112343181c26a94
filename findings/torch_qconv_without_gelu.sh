#!/usr/bin/env bash
# torch 2.13.0 on x86: onednn.qconv_pointwise has no GELU after the product, which onednn.qlinear_pointwise has.
#
# Both operators take the name of an activation that is computed in the same pass, `attr`. The linear one takes gelu; the
# convolution refuses it when it runs, and takes relu, hardtanh, hardswish and swish. The schemas do not show that. A network
# with GELU behind int8 convolutions pays another pass over each output, or writes a 1x1 convolution as a linear layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch

scales, zeros = torch.full((8,), 0.01), torch.zeros(8, dtype=torch.int64)
pixels = torch.randint(0, 255, (1, 4, 8, 8), dtype=torch.uint8)
kernel = torch.randint(-127, 128, (8, 4, 3, 3), dtype=torch.int8)
conv = torch.ops.onednn.qconv_prepack(kernel, scales, 0.01, 128, [1, 1], [1, 1], [1, 1], 1, list(pixels.shape))
linear = torch.ops.onednn.qlinear_prepack(kernel[:, :, 0, 0].contiguous(), [64, 4])
rows = pixels.permute(0, 2, 3, 1).reshape(64, 4).contiguous()


def answer(attr, of_conv):
    scalars, algorithm = [0.0, 6.0] if attr == "hardtanh" else [], "none" if attr == "gelu" else ""
    tail = (1.0, 0, torch.float32, attr, scalars, algorithm)
    try:
        if of_conv:
            where = ([1, 1], [1, 1], [1, 1], 1)
            torch.ops.onednn.qconv_pointwise(pixels, 0.01, 128, conv, scales, zeros, None, *where, *tail)
        else:
            torch.ops.onednn.qlinear_pointwise(rows, 0.01, 128, linear, scales, zeros, None, *tail)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "taken"


print("torch", torch.__version__)
seen = {attr: (answer(attr, True), answer(attr, False)) for attr in ("relu", "hardtanh", "hardswish", "swish", "gelu")}
for attr, (of_conv, of_linear) in seen.items():
    print(f"{attr}: convolution {of_conv}, linear {of_linear}")
assert [attr for attr, (of_conv, _) in seen.items() if of_conv != "taken"] == ["gelu"], "the convolution takes others now"
assert seen["gelu"] == ("Unsupported post op gelu for quantized pointwise conv2d.", "taken"), "gelu is not as it was"
PYTHON
