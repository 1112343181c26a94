"""The other backbones' classifiers against the outputs of their authors' code, with reproducible weights.

The networks run in float64, where rounding hides no mistake: `mutants.json` has plausible mistakes, the smallest of
which moves the logits by 3e-5 of their spread.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.families.classifier import ClassifierSpec
from model.families.cmt import CMT_SIZES
from model.families.hire_mlp import HIRE_MLP_SIZES
from model.families.hvt import HVT_SIZES
from model.families.registry import BackboneSpec
from model.families.repmlpnet import REPMLPNET_SIZES, RepMLPNetSpec
from model.net.hire_mlp import HireMLP
from model.net.hvt import Pooling
from model.net.layers import ResidualModule
from model.net.network import build_network, meta_network
from model.net.normalise import Normalise
from model.net.repmlpnet import NETWORK as REPMLPNET_NETWORK
from model.net.repmlpnet import PartitionMixer
from model.preprocess import prepare
from model.types import Image
from tests import goldens
from tests.goldens import System

pytestmark = [goldens.requires_families, pytest.mark.usefixtures("one_thread")]

SPREAD = 1e-6
"""Largest difference in float64, of the spread of a tensor's values: the references have nine digits."""


@dataclass(frozen=True)
class Case:
    """A variant of the references, and what its inputs are called."""

    system: System
    variant: str
    spec: BackboneSpec
    inputs: str

    def network(self) -> nn.Module:
        """In evaluation mode."""
        return copy.deepcopy(_network(self))

    def input(self, picture: str) -> Tensor:
        return self.system.input(f"{self.inputs}_{picture}")


@lru_cache(maxsize=1)
def _network(case: Case) -> nn.Module:
    network = meta_network(ClassifierSpec(backbone=case.spec), 1000).eval()  # without random weights
    network.load_state_dict(case.system.tensors(case.variant), assign=True)
    return network


CMT = System("cmt")
HIRE_MLP = System("hire_mlp")
HVT = System("hvt")
REPMLPNET = System("repmlpnet")
REP_T = Case(REPMLPNET, "RepMLPNet-T224", REPMLPNET_SIZES["t224"], "rep224")
REP_B = Case(REPMLPNET, "RepMLPNet-B256", REPMLPNET_SIZES["b256"], "rep256")
HIRE_MLP_TINY = Case(HIRE_MLP, "hire_mlp_tiny", HIRE_MLP_SIZES["tiny"], "cls224")
LARGE = (
    pytest.param(REP_B, id="repmlpnet_b256", marks=pytest.mark.slow),
    pytest.param(Case(CMT, "cmt_s", CMT_SIZES["s"], "cls224"), id="cmt_s", marks=pytest.mark.slow),
)
MISTAKEN = {
    "repmlpnet": REP_T,
    "cmt": Case(CMT, "cmt_ti", CMT_SIZES["ti"], "cls160"),
    "hire_mlp": HIRE_MLP_TINY,
    "hvt": Case(HVT, "scale_hvt_ti_4", HVT_SIZES["scale_ti_4"], "cls224"),
}
"""By system: the variant whose mistakes are recorded."""
REPMLPNETS = (pytest.param(REP_T, id="repmlpnet_t224"), LARGE[0])
"""The first of `CASES`, so that pytest runs a network's tests one after another in these tests, too."""
CASES = (
    *REPMLPNETS,
    LARGE[1],
    pytest.param(MISTAKEN["cmt"], id="cmt_ti"),
    pytest.param(HIRE_MLP_TINY, id="hire_mlp_tiny"),
    pytest.param(Case(HVT, "hvt_ti_1", HVT_SIZES["ti_1"], "cls224"), id="hvt_ti_1"),
    pytest.param(MISTAKEN["hvt"], id="scale_hvt_ti_4"),
)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """All tests of one case run one after another: filling its network takes up to four seconds."""
    found: Case = request.param
    return found


def test_the_weights_are_those_of_the_references(case: Case) -> None:
    """The filled tensors have the recorded hashes, in the order of the authors' file, which is the network's."""
    tensors = _network(case).state_dict()
    expected = case.system.json(f"fill/{case.variant}.json")["tensors"]
    digests = {key: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] for key, tensor in tensors.items()}
    assert list(digests.items()) == list(expected.items())


@pytest.mark.parametrize("picture", "abcd")
def test_preprocessed_inputs_are_equal_to_the_last_bit(case: Case, picture: str) -> None:
    """A picture becomes the authors' network input."""
    spec = case.spec.classifier_preprocessing
    prepared = prepare(Image(goldens.picture(picture)), spec)
    found = Normalise(spec)(torch.tensor(prepared.pixels)[None])
    assert torch.equal(found, case.input(picture))


@torch.inference_mode()
def test_every_stage_and_the_logits_are_the_authors(case: Case) -> None:
    """Each recorded tensor and all logits equal those of the authors' float64 run; so do the twenty best classes. In
    float32 logits stay within 1e-4 of their spread."""
    network = case.network()
    for picture in "abcd":
        final = case.system.json(f"final/{case.variant}_{picture}.json")
        logits = torch.tensor(final["logits64"], dtype=torch.float64)
        single = network.float()(case.input(picture))[0]
        assert (single - logits).abs().max() < 1e-4 * logits.std()
        assert single.topk(20).indices.tolist() == [one["index"] for one in final["top20"]]
        if picture in "ab":  # float64 takes several times as long
            refs = case.system.json(f"refs/{case.variant}_{picture}.json")
            double, differing = with_stages(network.double(), case.input(picture).double(), refs)
            assert differing == {}
            assert (double[0] - logits).abs().max() < SPREAD * logits.std()
            assert double[0].topk(20).indices.tolist() == final["top20_float64_indices"]


def with_stages(network: nn.Module, x: Tensor, refs: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    """The output, and the stages that differ from the references, with the largest difference of the spread."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            # Ours adds the residual.
            found[name] = out - inputs[1] if isinstance(module, ResidualModule) else out

        return hook

    modules = dict(network.named_modules())
    hooks = [modules[name].register_forward_hook(keep(name)) for name in refs if name in modules]
    output: Tensor = network(x)
    for hook in hooks:
        hook.remove()
    assert len(found) >= len(refs) - 1  # a mean over positions may be no module
    return output, {name: far for name, out in found.items() if (far := difference(out, refs[name])) > SPREAD}


def difference(out: Tensor, ref: dict[str, Any]) -> float:
    """Of a recorded tensor; some are recorded as positions (N, H·W, C) where ours is a map (N, C, H, W), or (N, C, L)
    where ours is a sequence (N, L, C)."""
    if out.ndim == 4 and len(ref["shape"]) == 3:
        out = out.flatten(2).transpose(1, 2)
    elif out.ndim == 3 and list(out.shape) != ref["shape"]:
        out = out.transpose(1, 2)
    assert list(out.shape) == ref["shape"]
    values = out.reshape(-1)[torch.tensor(ref["idx"])]
    return float((values - torch.tensor(ref["val"], dtype=torch.float64)).abs().max() / ref["std"])


def set_eps(kind: type[nn.Module], eps: float, name: str = "") -> Callable[[nn.Module], None]:
    """A mutation: another eps in all norms of a kind whose names contain `name`."""

    def mutate(network: nn.Module) -> None:
        for key, module in network.named_modules():
            if isinstance(module, kind) and name in key:
                module.eps = eps  # type: ignore[assignment]

    return mutate


def replace(
    kind: type[nn.Module], other: Callable[[], nn.Module], name: str = "", without: str = " "
) -> Callable[[nn.Module], None]:
    """A mutation: another module in place of all of a kind whose names contain `name`, and not `without`."""

    def mutate(network: nn.Module) -> None:
        for key, module in list(network.named_modules()):
            if isinstance(module, kind) and name in key and without not in key:
                network.set_submodule(key, other())

    return mutate


def tanh_gelu() -> nn.Module:
    return nn.GELU(approximate="tanh")


def set_padding(name: str, padding: tuple[int, int]) -> Callable[[nn.Module], None]:
    def mutate(network: nn.Module) -> None:
        network.get_submodule(name).padding = padding  # type: ignore[assignment]

    return mutate


def set_steps(step: Callable[[int, int], int]) -> Callable[[nn.Module], None]:
    """A mutation: other steps of Hire-MLP's blocks, by stage and block."""

    def mutate(network: nn.Module) -> None:
        for stage in range(4):
            for block, module in enumerate(network.get_submodule(f"network.{2 * stage}").children()):
                module.attn.step = step(stage, block)  # type: ignore[union-attr]

    return mutate


def set_kernels(kernels: tuple[int, ...]) -> Callable[[nn.Module], None]:
    """A mutation: some of RepMLPNet's convolutions only."""

    def mutate(network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, PartitionMixer):
                module.kernels = kernels
                if not kernels:  # its norm remains
                    module.kernels = (0,)
                    module.repconv0 = Nothing()

    return mutate


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class AveragePooling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool1d(x.transpose(1, 2), 3, 2).transpose(1, 2)


def right_step(stage: int, block: int) -> int:
    return block % 2 * 2 if stage < 2 else block % (3 if stage == 2 else 2)


MUTATIONS: dict[str, dict[str, Callable[[nn.Module], None]]] = {
    "cmt": {
        "stem ReLU (key name stem_relu) instead of GELU": replace(nn.GELU, nn.ReLU, "stem"),
        "GELU instead of swish in the head": replace(nn.SiLU, nn.GELU),
        "block LayerNorm eps 1e-5": set_eps(nn.LayerNorm, 1e-5, "blocks"),
        "patch LayerNorm eps 1e-6": set_eps(nn.LayerNorm, 1e-6, "patch"),
        "tanh GELU": replace(nn.GELU, tanh_gelu),
        "BatchNorm eps 1e-3": set_eps(nn.BatchNorm2d, 1e-3),
        "no BN after the key/value reduction": replace(nn.BatchNorm2d, nn.Identity, "attn.sr.1"),
    },
    "hire_mlp": {
        "no cross-region shift": set_steps(lambda _stage, _block: 0),
        "shift the other way": set_steps(lambda stage, block: -right_step(stage, block)),
        "stage 3 shift period 2 (0,1,0,1) instead of 3 (0,1,2)": set_steps(
            lambda stage, block: block % 2 if stage == 2 else right_step(stage, block)
        ),
        "GELU inside the token mixer instead of ReLU": replace(nn.ReLU, nn.GELU, "attn.act"),
        "GELU after the patch embeddings instead of ReLU": replace(nn.ReLU, nn.GELU, "act", without="attn"),
        "no activation after the downsampling": replace(nn.ReLU, nn.Identity, "network.", without="attn"),
        "patch embedding padding 3": set_padding("patch_embed.proj", (3, 3)),
        "no BatchNorm before the head": lambda network: network.set_submodule("norm", nn.Identity()),
        "tanh GELU": replace(nn.GELU, tanh_gelu),
        "BatchNorm eps 1e-3": set_eps(nn.BatchNorm2d, 1e-3),
        "BatchNorm eps 1e-6": set_eps(nn.BatchNorm2d, 1e-6),
    },
    "repmlpnet": {
        "1x1 branch left out": set_kernels((3,)),
        "both conv branches left out": set_kernels(()),
        "no BN after fc3": replace(nn.BatchNorm2d, nn.Identity, "fc3_bn"),
        "ReLU in the FFN": replace(nn.GELU, nn.ReLU),
        "no ReLU after the first embedding": replace(nn.ReLU, nn.Identity, "conv_embedding"),
        "no ReLU after the stage embeddings": replace(nn.ReLU, nn.Identity, "embeds"),
        "no BN before the head": replace(nn.BatchNorm2d, nn.Identity, "head_norm"),
        "tanh GELU": replace(nn.GELU, tanh_gelu),
        "BatchNorm eps 1e-3": set_eps(nn.BatchNorm2d, 1e-3),
        "BatchNorm eps 1e-6": set_eps(nn.BatchNorm2d, 1e-6),
    },
    "hvt": {
        "average instead of max pooling": replace(Pooling, AveragePooling),
        "LayerNorm eps 1e-5 instead of 1e-6": set_eps(nn.LayerNorm, 1e-5),
        "tanh GELU": replace(nn.GELU, tanh_gelu),
    },
}
"""Those mistakes of `mutants.json` that exchange a module."""


@torch.inference_mode()
@pytest.mark.parametrize("case", REPMLPNETS, indirect=True)
def test_repmlpnet_in_deploy_form_is_the_authors(case: Case) -> None:
    """Merged weights equal the authors' float64 conversion, and logits their deploy form's; both forms give the same
    logits within 1e-5 of their spread. Merging twice changes nothing. A file in deploy form is loaded as it is."""
    assert REPMLPNET_NETWORK.reparameterise is not None
    network, trained = case.network(), {}
    for picture in "abcd":
        trained[picture] = network(case.input(picture))[0]
    REPMLPNET_NETWORK.reparameterise(network)
    keys = [key for key, _, _ in REPMLPNET.json(f"keys/{case.variant}_deploy.json")["keys"]]
    assert list(network.state_dict()) == keys
    for key, ref in REPMLPNET.json(f"deploy/{case.variant}.json").items():
        values = network.state_dict()[key].flatten()[torch.tensor(ref["idx"])]
        torch.testing.assert_close(values, torch.tensor(ref["val"]), rtol=1e-6, atol=1e-8)
    tensors = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    REPMLPNET_NETWORK.reparameterise(network)
    for picture, before in trained.items():
        logits = torch.tensor(REPMLPNET.json(f"final/{case.variant}_deploy_{picture}.json")["logits64"])
        after = network(case.input(picture))[0]
        assert (after - before).abs().max() < 1e-5 * logits.std()
        assert (after - logits).abs().max() < 1e-5 * logits.std()
    assert isinstance(case.spec, RepMLPNetSpec)
    deployed = build_network(ClassifierSpec(backbone=case.spec.model_copy(update={"deploy": True})), 1000).eval()
    deployed.load_state_dict(tensors)
    assert torch.equal(deployed(case.input("a"))[0], network(case.input("a"))[0])


@torch.inference_mode()
@pytest.mark.parametrize("deploy", [False, True])
def test_repmlpnet_reads_several_partitions_in_the_authors_order(deploy: bool) -> None:
    """A picture twice as wide as those of the training has two partitions."""
    network = REP_T.network().double()
    if deploy:
        assert REPMLPNET_NETWORK.reparameterise is not None
        REPMLPNET_NETWORK.reparameterise(network)
    refs = REPMLPNET.json("refs/RepMLPNet-T224_wide224x448.json")
    assert with_stages(network, REPMLPNET.input("wide224x448").double(), refs)[1] == {}


@torch.inference_mode()
@pytest.mark.parametrize("size", [(336, 224), (224, 336), (112, 112), (256, 256)])
def test_repmlpnet_refuses_sizes_that_its_partitions_do_not_divide(size: tuple[int, int]) -> None:
    """Whatever the number of pictures: with some numbers of them, parts of different pictures could be mixed."""
    network = build_network(ClassifierSpec(backbone=REPMLPNET_SIZES["t224"]), 10).eval()
    for count in (1, 2, 14):
        with pytest.raises(ValueError, match="has no partitions of 56 x 56"):
            network(torch.zeros(count, 3, *size))


@torch.inference_mode()
def test_hire_mlp_pads_regions_of_an_odd_size() -> None:
    """At 95 x 131 px every stage has regions that are not full."""
    refs = HIRE_MLP.json("refs/hire_mlp_tiny_odd95x131.json")
    assert with_stages(HIRE_MLP_TINY.network().double(), HIRE_MLP.input("odd95x131").double(), refs)[1] == {}


@torch.inference_mode()
@pytest.mark.parametrize(
    "name", ["odd95x131", *(pytest.param(name, marks=pytest.mark.slow) for name in ("seg_c", "det_d"))]
)
def test_hire_mlp_has_the_levels_of_the_authors_segmentation_backbone(name: str) -> None:
    """Each level has a batch norm of its own, which the next stage does not see."""
    backbone = HireMLP(HIRE_MLP_SIZES["tiny"]).eval()
    tensors = HIRE_MLP.tensors("seg_hire_mlp_tiny")
    assert list(backbone.state_dict()) == list(tensors)
    backbone.load_state_dict(tensors)
    refs = HIRE_MLP.json(f"refs/seg_hire_mlp_tiny_{name}.json")
    task, _, picture = name.partition("_")
    x = goldens.network_input(task, picture) if picture else HIRE_MLP.input(name)
    raw: list[Tensor] = []
    for norm in (backbone.norm0, backbone.norm2, backbone.norm4, backbone.norm6):
        norm.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0]))
    out = backbone.double()(x.double())
    for kind, levels in (("raw", raw), ("out", out)):
        for stride, level in zip((4, 8, 16, 32), levels, strict=True):
            assert difference(level, refs[f"{kind}.{stride}"]) < SPREAD


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (4, 700), (700, 4)])
def test_hire_mlp_takes_any_size(size: tuple[int, int]) -> None:
    """A map that has fewer rows than its last region lacks is repeated: long pictures become such inputs."""
    torch.manual_seed(1)
    levels = HireMLP(HIRE_MLP_SIZES["tiny"]).eval()(torch.randn(1, 3, *size))
    assert all(bool(level.isfinite().all()) for level in levels)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("system", list(MUTATIONS))
def test_a_mistake_would_be_found(system: str) -> None:
    """A mistake in our network moves the logits as far as the same mistake in the authors' code does."""
    case = MISTAKEN[system]
    recorded = mutants(case)
    x = case.input("a").double()
    unchanged = case.network().double()
    weights = {id(tensor): tensor for tensor in (*unchanged.parameters(), *unchanged.buffers())}
    right = unchanged(x)[0]
    for name, mutate in MUTATIONS[system].items():
        network = copy.deepcopy(unchanged, dict(weights))  # it shares them
        mutate(network)
        moved = float((network(x)[0] - right).abs().max())
        assert moved == pytest.approx(recorded[name], rel=0.02), name


@pytest.mark.parametrize("system", list(MISTAKEN))
def test_every_recorded_mistake_is_larger_than_the_tolerance(system: str) -> None:
    """The comparison is fine enough for each of the plausible mistakes."""
    case = MISTAKEN[system]
    spread = torch.tensor(case.system.json(f"final/{case.variant}_a.json")["logits64"]).std()
    for name, moved in mutants(case).items():
        assert moved > 10 * SPREAD * spread, name


def mutants(case: Case) -> dict[str, float]:
    """By mistake: how far it moves the authors' logits of picture a at most."""
    (recorded,) = case.system.json("mutants.json").values()
    far = {name: float(text.split()[3].rstrip(",")) for name, text in recorded.items()}
    assert far.pop("as is") == 0
    return far
