"""RepMLPNet through the whole service: a trained file, as its authors publish it, served in deploy form."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import torch

from model.zoo.catalogue import CATALOGUE
from model.zoo.importer import import_checkpoint
from tests import goldens
from tests.e2e.convmlp_process import running_service
from tests.goldens import System

pytestmark = goldens.requires_families

REPMLPNET = System("repmlpnet")
NAME = "repmlpnet_t224"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("repmlpnet")
    file = folder / "RepMLPNet-T224-train.pth"
    torch.save(REPMLPNET.tensors("RepMLPNet-T224"), file)
    import_checkpoint(file, folder / "store", NAME)
    flags = ("--models-dir", str(folder / "store"), "--models", NAME, "--precision", "fp32")
    with running_service(*flags) as service, httpx2.Client(base_url=service.url, timeout=60) as client:
        yield client


def test_models_state_the_form_and_how_far_it_differs(client: httpx2.Client) -> None:
    """It is merged when it is loaded, and the difference is measured then."""
    (model,) = client.get("/models").json()["models"]
    assert model["form"] == "deploy"
    assert 0 < model["form_difference"] < 1e-5
    assert client.get(f"/models/{NAME}").json() == model


def test_the_answers_are_the_authors(client: httpx2.Client) -> None:
    """The twenty best classes and their probabilities are those of the authors' code in deploy form."""
    for picture in "ac":
        content = (goldens.GOLDENS / "images" / f"{picture}.png").read_bytes()
        labels = client.post("/classify?top_k=20", content=content).json()["results"][0]["labels"]
        logits = np.array(REPMLPNET.json(f"final/RepMLPNet-T224_deploy_{picture}.json")["logits64"])
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-logits)[:20]
        assert [one["index"] for one in labels] == best.tolist()
        assert [one["label"] for one in labels] == [CATALOGUE[NAME].labels[index] for index in best]
        assert np.abs([one["score"] for one in labels] - expected[best]).max() < 1e-4 * expected.max()
