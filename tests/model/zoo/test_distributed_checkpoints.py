"""Files of torch's own distributed savers: FSDP's whole state, DCP's shards. One process, by gloo."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import distributed
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullStateDictConfig, StateDictType, fully_shard
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp1

from model.errors import BundleInvalid
from model.zoo.importer import import_checkpoint
from tests.model.tiny_models import tiny_network

NETWORK = copy.deepcopy(tiny_network("classifier").state_dict())


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded() -> torch.nn.Module:
    """A network whose parameters are DTensors, as FSDP 2 makes them."""
    network = copy.deepcopy(tiny_network("classifier"))
    fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
    return network


def imported(file: Path) -> dict[str, torch.Tensor]:
    bundle = import_checkpoint(file, file.parent / "store", "mine")
    return safetensors.torch.load_file(bundle.weights_path)


def require_same(found: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        assert torch.equal(tensor, NETWORK[name]), name


def test_the_whole_state_of_fsdp_is_imported(tmp_path: Path) -> None:
    """Of FSDP 2, as its users save it; the weights are those of the network."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    torch.save({"model": get_model_state_dict(sharded(), options=options), "epoch": 3}, tmp_path / "last.pth")
    require_same(imported(tmp_path / "last.pth"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_whole_state_of_the_first_fsdp_is_imported(tmp_path: Path) -> None:
    """FULL_STATE_DICT, of rank 0."""
    network = Fsdp1(copy.deepcopy(tiny_network("classifier")), device_id=torch.device("cpu"))
    config = FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
    with Fsdp1.state_dict_type(network, StateDictType.FULL_STATE_DICT, config):
        torch.save({"state_dict": network.state_dict()}, tmp_path / "last.pth")
    require_same(imported(tmp_path / "last.pth"))


def test_tensors_in_shards_are_refused(tmp_path: Path) -> None:
    """DTensors have the values of one process."""
    torch.save(sharded().state_dict(), tmp_path / "last.pth")
    with pytest.raises(BundleInvalid, match=r"last\.pth has the shards of a distributed training \(DTensor\)"):
        imported(tmp_path / "last.pth")


def test_a_folder_of_dcp_is_refused_with_the_command_that_consolidates_it(tmp_path: Path) -> None:
    """The command's function gives a file that is imported."""
    save({"model": get_model_state_dict(sharded())}, checkpoint_id=tmp_path / "step_9")
    with pytest.raises(BundleInvalid, match=r"format_utils dcp_to_torch DIR FILE\.pth"):
        imported(tmp_path / "step_9")
    dcp_to_torch_save(tmp_path / "step_9", tmp_path / "whole.pth")
    require_same(imported(tmp_path / "whole.pth"))


def test_dcps_files_for_hugging_face(tmp_path: Path) -> None:
    """Whole, with its index, they are imported; of shards the error has the lines that make a whole file."""
    state = get_model_state_dict(sharded(), options=StateDictOptions(full_state_dict=True))
    writer = HuggingFaceStorageWriter(str(tmp_path / "whole"), fqn_to_index_mapping=dict.fromkeys(state, 1))
    save(state, storage_writer=writer)
    require_same(imported(tmp_path / "whole"))
    shards = tmp_path / "shards"
    save(get_model_state_dict(sharded()), storage_writer=HuggingFaceStorageWriter(str(shards), save_distributed=True))
    (first,) = shards.iterdir()
    with pytest.raises(BundleInvalid, match=r"shards has the shards of .*; torch\.save\(state, FILE\)"):
        imported(shards)
    loaded = copy.deepcopy(NETWORK)
    load(loaded, storage_reader=HuggingFaceStorageReader(str(shards)))
    torch.save(loaded, tmp_path / "loaded.pth")
    require_same(imported(tmp_path / "loaded.pth"))
    shutil.copy(first, shards / first.name.replace("shard-00001", "shard-00002"))
    with pytest.raises(BundleInvalid, match=r"00001\.safetensors is one of the shards of a distributed training"):
        imported(first)
