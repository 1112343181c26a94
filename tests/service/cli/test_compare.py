"""`convmlp compare`: models of a service and of the store, with and without a truth."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import Bundle
from model.net.weights import write_bundle
from model.reference import ClassifyReference
from model.types import Task
from service.cli.model_reference import ModelReference
from service.errors import BadParameter
from service.evaluation.predictions import PREDICTIONS_FILE
from tests.fakes import fake_bundle
from tests.model.tiny_models import NUM_CLASSES, metadata, tiny_bundle, tiny_network
from tests.service.cli.convmlp_command import convmlp, started, url
from tests.service.evaluation.data_sets import HEIGHT, WIDTH, write_class_folders, write_mask, write_picture
from tests.service.frontend.rest_server import Rest, open_rest
from tests.waiting import until


async def test_models_of_the_store_are_compared(tmp_path: Path) -> None:
    """The truth decides who is nearer where they differ; the page has the pictures that differ most."""
    store = tmp_path / "store"
    tiny_bundle(store, "classifier")
    network = tiny_network("classifier")
    with torch.no_grad():
        network.head.weight.neg_()  # type: ignore[operator, union-attr]
        network.head.bias.neg_()  # type: ignore[operator, union-attr]
    write_bundle(store, metadata("classifier", "other"), network, lambda _: ClassifyReference(labels=()))
    data = write_class_folders(tmp_path / "data", {f"class {index}": 1 for index in range(NUM_CLASSES)})
    page = tmp_path / "page.html"
    ran = await convmlp(
        *("compare", "tiny:fp32", "other", str(data), "--models-dir", str(store), "--json"),
        *("--html", str(page), "--max-pictures", "2"),
    )
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert (found["A"], found["B"], found["differing"], len(found["worst"])) == ("tiny:fp32", "other", 5, 2)
    assert sum(found["nearer"].values()) == 5
    assert found["metrics"]["top-1 agreement"] == 0
    text = page.read_text(encoding="utf-8")
    assert (text.count("<section>"), text.count("<img ")) == (2, 4)


async def test_models_of_a_service_are_compared(rest: Rest, tmp_path: Path) -> None:
    """A folder of pictures needs no truth; a picture that cannot be read is left out, reported, and the status is 1."""
    for grey in (40, 41, 42):
        write_picture(tmp_path / f"{grey}.png", grey)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    model = f"{url(rest)}/models/fake_detect"
    ran = await convmlp("compare", model, model, str(tmp_path))
    assert (ran.status, ran.err.startswith("convmlp: broken.png: ")) == (1, True)
    assert ran.lines[0] == f"A {model}  B {model}"
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.rsplit(maxsplit=1)[1] for line in ran.lines[2:]}
    names = ("pictures", "pictures that differ", "boxes matched at IoU 0.5", "boxes only in A")
    assert [rows[name] for name in names] == ["3", "0", "6", "0"]
    assert rows["pictures without results"] == "1"


async def test_a_comparison_that_is_killed_continues(tmp_path: Path) -> None:
    """Predictions before SIGKILL are kept and not asked for again; the comparison is of all. Other data are refused."""
    for grey in range(12):
        write_picture(tmp_path / f"data/{grey}.png", 100 + grey)
    out = tmp_path / "out"

    def kept() -> list[bytes]:
        files = [out / name / PREDICTIONS_FILE for name in ("A", "B")]
        return [file.read_bytes() if file.exists() else b"" for file in files]

    async with open_rest() as rest:
        runner = rest.worker.runner
        runner.block_after(2)
        model = f"{url(rest)}/models/fake_classify"
        command = ["compare", model, model, str(tmp_path / "data"), "--out", str(out), "--json"]
        async with started(*command) as process:
            await until(lambda: any(kept()))
            process.send_signal(signal.SIGKILL)
            await process.wait()
        before = kept()
        runner.takes = None
        runner.unblocked.set()
        ran = await convmlp(*command)
        assert (ran.status, json.loads(ran.out)["pictures"]) == (0, 12), ran.err
        for old, new in zip(before, kept(), strict=True):
            assert new.startswith(old)
            assert sorted(json.loads(line)["image"] for line in new.splitlines()) == sorted(
                f"{grey}.png" for grey in range(12)
            )
        batches = len(runner.batches)
        ran = await convmlp(*command)
        assert (ran.status, ran.err) == (0, "convmlp: 12 of 12 pictures were predicted before\n")
        assert len(runner.batches) == batches
        write_picture(tmp_path / "data/0.png", 5)
        ran = await convmlp(*command)
        assert (ran.status, "has predictions of another run: data sha256 " in ran.err) == (1, True)


async def test_a_folder_of_masks_is_no_folder_of_pictures(tmp_path: Path) -> None:
    """With a flag of data sets its PNGs are the truth: the class indices of each model."""
    picture = write_picture(tmp_path / "images/a.png", 41)
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, WIDTH // 2 :] = 1  # as the fake answers for this grey
    write_mask(tmp_path / "masks/a.png", values)
    other = fake_bundle(Task.SEGMENT, "other")
    renamed = other.config.model_copy(update={"labels": tuple(reversed(other.config.labels))})
    async with open_rest(more=(Bundle(other.folder, renamed),)) as rest:
        models = [f"{url(rest)}/models/{name}" for name in ("fake_segment", "other")]
        ran = await convmlp("compare", *models, str(tmp_path / "masks"), "--images", str(picture.parent), "--json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert (found["pictures"], found["differing"], found["nearer"]) == (1, 1, {"both are right": 1})


async def test_what_cannot_be_compared_is_refused(rest: Rest, tmp_path: Path) -> None:
    """In one line each, with what is expected."""
    write_picture(tmp_path / "flat/a.png")
    folders = write_class_folders(tmp_path / "folders", {"cat": 1})
    served = f"{url(rest)}/models"
    for first, second, data, message in (
        (f"{served}/fake_classify", f"{served}/fake_detect", tmp_path / "flat", "expected two models of one task"),
        (f"{served}/nobody", f"{served}/fake_detect", tmp_path / "flat", "does not serve 'nobody'; it serves fake_"),
        (f"{served}/fake_detect", f"{served}/fake_detect", folders, "--no-truth takes the pictures alone"),
    ):
        ran = await convmlp("compare", first, second, str(data))
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, b"", 1), ran.err
        assert message in ran.err


def test_references_of_models() -> None:
    """A model of the store in a precision, exact by default, or a model of a service behind any path."""
    assert ModelReference.of("pets@2") == ModelReference("pets@2", "pets@2", "exact")
    assert ModelReference.of("pets@1:bf16") == ModelReference("pets@1:bf16", "pets", "bf16")
    served = "https://host/vision/models/pets@3"
    assert ModelReference.of(served) == ModelReference(served, "pets@3", url="https://host/vision")
    for text, message in (
        ("pets:fp8", "the precision is one of exact, fp32, fp16, bf16, int8, as in pets:fp32"),
        ("http://host:8000", "expected http://HOST:PORT/models/NAME"),
    ):
        with pytest.raises(BadParameter, match=message):
            ModelReference.of(text)


async def test_a_lost_service_ends_the_command(tmp_path: Path) -> None:
    """With one error, and no comparison of a part."""
    write_picture(tmp_path / "a.png")
    async with open_rest(with_worker=True, more=(fake_bundle(Task.DETECT, "other"),)) as rest:
        address = url(rest)
    ran = await convmlp("compare", f"{address}/models/other", f"{address}/models/fake_detect", str(tmp_path))
    assert (ran.status, ran.out, "cannot connect" in ran.err) == (1, b"", True)
