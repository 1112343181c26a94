#!/usr/bin/env bash
# torch 2.13.0: torch.distributed.checkpoint.HuggingFaceStorageWriter(enable_consolidation=True) cannot consolidate a network
# that has a batch norm.
#
# It asks torch.finfo for the width of each tensor's dtype, and num_batches_tracked is int64: TypeError, after the shards are
# written. A network without integers is consolidated. The shards are complete: HuggingFaceStorageReader loads them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 safetensors==0.8.0 fsspec==2026.9.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>log <<'PYTHON'
import torch
import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


def consolidated(network, folder):
    state = {name: distribute_tensor(tensor, mesh) for name, tensor in network.state_dict().items()}
    writer = HuggingFaceStorageWriter(path=folder, save_distributed=True, enable_consolidation=True)
    try:
        dcp.save(state, storage_writer=writer)
    except BaseException as error:  # CheckpointException is no Exception
        return "torch.finfo() requires" if "torch.finfo() requires a floating point input type" in str(error) else repr(error)
    return "written"


found = consolidated(torch.nn.BatchNorm2d(3), "batch_norm"), consolidated(torch.nn.LayerNorm(3), "layer_norm")
distributed.destroy_process_group()
print(f"torch {torch.__version__}: batch norm: {found[0]}; layer norm: {found[1]}")
assert found == ("torch.finfo() requires", "written"), "integers are consolidated, now"
PYTHON
