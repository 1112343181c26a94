from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from model.bundle import CONFIG_FILE, EMBEDDED_DIR, read_bundle
from model.net.weights import write_bundle
from model.predictor import Predictor, reference_answer
from model.spec import ClassifyPostSpec
from model.training.data import read_index
from model.training.evaluate import MIN_CURVE_SCORE, measure
from model.types import Task
from service.cli.app import app
from service.evaluation.predictions import PREDICTIONS_FILE
from tests.fakes import fake_bundle
from tests.model.tiny_models import metadata, tiny_network
from tests.model.training.pets_dataset import write_photographs
from tests.service.cli.convmlp_command import started, url
from tests.service.evaluation.data_sets import write_csv, write_instances, write_mask, write_picture
from tests.service.frontend.rest_server import Rest, open_rest
from tests.waiting import until

GREYS = range(100, 112)


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    """The service's log goes to stdout, which here has the command's output. `restored_logs` undoes this."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of one grey level each, which the fake classifier names; the last label is wrong."""
    rows = [[f"{grey}.png", f"grey {grey if grey < GREYS[-1] else 0}"] for grey in GREYS]
    for grey in GREYS:
        write_picture(tmp_path / f"{grey}.png", grey)
    return write_csv(tmp_path / "data.csv", rows)


async def convmlp(*arguments: str) -> Result:
    """Run `convmlp` in a thread: each command runs an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


def arguments(rest: Rest, data: Path, model: str = "fake_classify") -> list[str]:
    return ["eval", "--model", model, str(data), "--url", url(rest)]


async def test_a_classifiers_figures(rest: Rest, grpc_url: str, data: Path, tmp_path: Path) -> None:
    """Eleven of twelve are right, each with the score 0.5: through REST as through gRPC. JSON has all of the report."""
    (tmp_path / "broken.png").write_bytes(b"not an image")
    picture = tmp_path / "confusion.png"
    ran = await convmlp(*arguments(rest, data), "--picture", str(picture))
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ["top1", "0.9167"] in [line.split() for line in ran.stdout.splitlines()]
    assert ["ece", "0.4167"] in [line.split() for line in ran.stdout.splitlines()]
    assert ran.stdout.splitlines()[-2].split() == ["grey", "0", "grey", "111", "1", "1.0000"]
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    with data.open("a") as file:
        file.write("broken.png,grey 1\n")
    ran = await convmlp("eval", "--model", "fake_classify", str(data), "--url", grpc_url, "--json")
    assert ran.exit_code == 1
    assert "convmlp: broken.png: " in ran.stderr
    report = json.loads(ran.stdout)
    assert report["metrics"] == {"top1": 0.9167, "top5": 0.9167, "ece": 0.4167}
    assert (report["measured"], report["failed"], list(report["errors"])) == (12, 1, ["broken.png"])
    assert report["confusions"] == [{"truth": "grey 0", "answer": "grey 111", "count": 1, "share": 1.0}]


async def test_a_run_that_is_killed_continues(data: Path, tmp_path: Path) -> None:
    """What was predicted before SIGKILL is kept to the byte; a torn line is dropped; the figures are those of all."""
    out = tmp_path / "out"
    predictions = out / PREDICTIONS_FILE
    async with open_rest() as rest:
        runner = rest.worker.runner
        runner.block_after(4)
        command = [*arguments(rest, data), "--out", str(out)]
        async with started(*command, "--concurrency", "1") as process:
            await until(lambda: predictions.exists() and predictions.read_bytes().count(b"\n") >= 3)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        kept = predictions.read_bytes()
        assert 3 <= kept.count(b"\n") < len(GREYS)
        with predictions.open("ab") as file:
            file.write(b'{"image":"111.png","resu')
        runner.takes = None
        runner.unblocked.set()
        ran = await convmlp(*command, "--json")
        assert ran.exit_code == 0
        done = kept.count(b"\n")
        assert ran.stderr == f"convmlp: {done} of 12 pictures were predicted before\n"
        assert json.loads(ran.stdout)["metrics"]["top1"] == 0.9167
        lines = predictions.read_bytes()
        assert lines.startswith(kept)
        assert sorted(json.loads(line)["image"] for line in lines.splitlines()) == [f"{grey}.png" for grey in GREYS]
        # Other data are refused, and so is what the service does not serve.
        write_picture(tmp_path / "100.png", 5)
        ran = await convmlp(*command)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert "has predictions of another run: data sha256 " in ran.stderr
        ran = await convmlp(*arguments(rest, data, "pets"))
        assert "does not serve 'pets'; it serves fake_classify, fake_detect, fake_segment" in ran.stderr


async def test_pictures_of_several_labels_need_a_threshold_or_all_scores(rest: Rest, tmp_path: Path) -> None:
    """A service answers labels above a threshold; a model without one has no figures there."""
    write_picture(tmp_path / "a.png", 100)
    ran = await convmlp(*arguments(rest, write_csv(tmp_path / "x.csv", [["a.png", "grey 1|grey 2"]])))
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "fake_classify has no threshold above which a label counts; --local measures" in ran.stderr


async def test_a_service_at_capacity_is_asked_again(data: Path) -> None:
    """A 503 is no result: every picture has one in the end, with more requests at once than the service accepts."""
    async with open_rest(max_in_flight=2) as rest:
        ran = await convmlp(*arguments(rest, data), "--concurrency", "8", "--json")
        assert ran.exit_code == 0
        assert json.loads(ran.stdout)["measured"] == len(GREYS)


async def test_detectors_and_segmenters(rest: Rest, tmp_path: Path) -> None:
    """The fakes' first box, and their left half, are the truth: of the rest nothing is right."""
    write_picture(tmp_path / "images/a.png", 100)
    objects = [{"label": "cat", "bbox": [0, 0, 20, 15]}]
    path = write_instances(tmp_path / "heads.json", {"a.png": objects}, ("cat", "dog"))
    ran = await convmlp(*arguments(rest, path, "fake_detect"), "--images", str(tmp_path / "images"), "--json")
    report = json.loads(ran.stdout)
    assert report["metrics"]["box_ap"] == report["metrics"]["box_ap_cat"] == 1.0
    assert (report["metrics"]["precision_at_threshold"], report["metrics"]["recall_at_threshold"]) == (0.5, 1.0)
    write_mask(tmp_path / "masks/a.png", [[0] * 40] * 30)
    ran = await convmlp(*arguments(rest, tmp_path, "fake_segment"), "--data-format", "masks", "--json")
    assert json.loads(ran.stdout)["metrics"]["pixel_accuracy"] == 0.5
    ran = await convmlp(*arguments(rest, tmp_path, "fake_detect"))
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "the model is for 'detect'; expected coco" in ran.stderr


async def test_figures_are_written_into_the_bundle(rest: Rest, data: Path, tmp_path: Path) -> None:
    """The bundle of the model that answered, in the store; `models show` prints them. An embedded one is left alone."""
    store = tmp_path / "store"
    shutil.copytree(EMBEDDED_DIR / "convmlp_pets_breed", store / "fake_classify")
    config = json.loads((store / "fake_classify" / CONFIG_FILE).read_text())
    config["name"] = "fake_classify"
    (store / "fake_classify" / CONFIG_FILE).write_text(json.dumps(config))
    stored = ["--models-dir", str(store), "--write"]
    ran = await convmlp(*arguments(rest, data), *stored)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "has other weights than the model that" in ran.stderr
    weights = store / "fake_classify/model.safetensors"
    weights.write_bytes(b"")  # as the fake's
    config["weights_sha256"] = fake_bundle(Task.CLASSIFY).config.weights_sha256
    (store / "fake_classify" / CONFIG_FILE).write_text(json.dumps(config))
    ran = await convmlp(*arguments(rest, data), *stored)
    assert ran.exit_code == 0
    bundle = read_bundle(store / "fake_classify")
    accuracy = bundle.config.accuracy
    assert accuracy is not None
    assert accuracy.metrics == {"top1": 0.9167, "top5": 0.9167, "ece": 0.4167}
    assert accuracy.measured_on == "12 pictures of data.csv (csv); precision fp32; by `convmlp eval`"
    assert ran.stdout.splitlines()[-1] == f"data sha256 {accuracy.data_sha256}"
    shown = await convmlp("models", "show", "fake_classify", "--models-dir", str(store))
    assert f"data sha256 {accuracy.data_sha256}" in shown.stdout
    ran = await convmlp("eval", "--model", "convmlp_pets_breed", str(data), "--local", "--write")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "convmlp_pets_breed is embedded in the program and is not changed; copy " in ran.stderr


async def test_the_held_out_photographs_give_the_figures_of_the_training(tmp_path: Path) -> None:
    """`eval --local` on what `train held-out` writes equals what the training writes into a bundle."""
    pets = write_photographs(tmp_path / "pets")
    ran = await convmlp("train", "held-out", "--data", str(pets), "--out", str(tmp_path / "held"))
    assert ran.exit_code == 0
    held_out = read_index(pets).held_out()
    for name, data, options in (
        ("convmlp_pets_outline", "outline", []),
        ("convmlp_pets_heads", "heads.json", ["--score-threshold", str(MIN_CURVE_SCORE)]),
    ):
        bundle = read_bundle(EMBEDDED_DIR / name)
        expected = measure(Predictor(bundle, torch.device("cpu")), bundle.config, held_out)
        arguments = ["eval", "--local", "--model", name, str(tmp_path / "held" / data), "--json", *options]
        ran = await convmlp(*arguments, "--images", str(pets / "images"))
        assert ran.exit_code == 0, ran.stderr
        found = json.loads(ran.stdout)["metrics"]
        assert {key: found[key] for key in expected} == expected


async def test_a_multi_label_classifier_is_measured_with_all_its_scores(tmp_path: Path) -> None:
    """In this process the labels below the model's threshold have their scores, too, which its mAP needs."""
    post = ClassifyPostSpec(activation="sigmoid", score_threshold=1.0)
    tags = replace(metadata("classifier", name="tags"), postprocessing=post)
    write_bundle(tmp_path / "store", tags, tiny_network("classifier"), reference_answer)
    write_picture(tmp_path / "a.png", 30)
    write_picture(tmp_path / "b.png", 200)
    data = write_csv(tmp_path / "tags.csv", [["a.png", "class 0|class 1"], ["b.png", "class 1"]])
    arguments = ["eval", "--local", "--model", "tags", str(data), "--models-dir", str(tmp_path / "store"), "--json"]
    ran = await convmlp(*arguments, "--out", str(tmp_path / "out"), "--write")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["metrics"]["ap_class 1"] == 1.0
    assert report["metrics"]["map"] == (report["metrics"]["ap_class 0"] + 1.0) / 2
    assert report["metrics"]["recall_at_threshold"] == 0.0
    lines = (tmp_path / "out" / PREDICTIONS_FILE).read_text().splitlines()
    assert [len(json.loads(line)["result"]["labels"]) for line in lines] == [len(tags.labels)] * 2
    accuracy = read_bundle(tmp_path / "store/tags").config.accuracy
    assert accuracy is not None
    assert (accuracy.metrics, accuracy.data_sha256) == (report["metrics"], report["data"]["sha256"])
