from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.material import CLASSES, PREPROCESSING, Material, fitted_network
from benchmarks.peers.classifier import NOOP
from benchmarks.servers import OURS, Server, Who, ours, peer
from benchmarks.visit import Step, visit
from model.net.normalise import Normalise


@pytest.mark.parametrize("server", [ours(NOOP, 2), peer(Who("fastapi", NOOP))], ids=lambda server: server.who.server)
def test_a_server_without_a_model_is_measured(server: Server, tmp_path: Path) -> None:
    """The no-op service, without decoding and device, and the bare FastAPI answer, use CPU, and stop."""
    steps = [Step("classify", "closed", 4, 0.5), Step("classify", "open", 0.5, 0.5)]
    done = visit(server, steps, 0, Material(tmp_path), tmp_path)
    assert done.trouble == "", next((tmp_path / "logs").iterdir()).read_text()
    closed, opened = done.loads
    assert closed.answers > 0
    assert closed.failed == {}
    assert opened.offered == pytest.approx(closed.answers / 2)
    assert closed.server_cpu > 0
    assert closed.resident_mib > 20
    assert done.resident_mib > 20
    if server.who.server == OURS:
        assert {"decode", "queue", "infer", "post", "total"} == set(closed.stages)


def test_a_server_that_ends_is_in_the_results(tmp_path: Path) -> None:
    """A server that does not start is in the results, with the name of its log."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").touch()
    (tmp_path / "answers.json").write_text("[0]")
    server = peer(Who("fastapi", "no such network"))
    done = visit(server, [Step("classify", "closed", 1, 0.5)], 0, Material(tmp_path), tmp_path)
    assert done.loads == []
    assert done.trouble == "it ended; see fastapi-no-such-network.log"


@torch.no_grad()
def test_each_picture_has_a_class_of_its_own_in_any_precision() -> None:
    """A wrong answer, or another picture's, is found out: top-1 is the picture's own, by far, in bf16 as well."""
    inputs = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8) for seed in range(3)]
    classes = [0, 15, 30]
    network = fitted_network(inputs, classes)
    x = Normalise(PREPROCESSING)(torch.from_numpy(np.stack(inputs)), None)
    for dtype in (torch.float32, torch.bfloat16):
        logits = network.to(dtype)(x.to(dtype)).float()
        assert logits.shape == (3, CLASSES)
        best = logits.topk(2)
        assert best.indices[:, 0].tolist() == classes
        assert (best.values[:, 0] - best.values[:, 1]).min() > 5
