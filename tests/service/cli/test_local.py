from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from model.net.weights import write_bundle
from model.predictor import reference_answer
from model.reference import REFERENCE_PICTURE
from service.cli.app import app
from service.settings import EMBEDDED_MODELS
from tests.model.tiny_models import NUM_CLASSES, metadata, tiny_network
from tests.service.cli.convmlp_command import started

CAT = str(REFERENCE_PICTURE)
PALETTE = tuple((40 * index, 200 - 40 * index, 99) for index in range(NUM_CLASSES))
FAMILIES = {"classify": "classifier", "detect": "mask_rcnn", "segment": "semantic_fpn"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model for each task, named after it."""
    folder = tmp_path_factory.mktemp("store")
    for task, family in FAMILIES.items():
        coloured = replace(metadata(family, name=task), palette=PALETTE)
        write_bundle(folder, coloured, tiny_network(family), reference_answer)
    return folder


def local(*arguments: str, store: Path | None = None, stdin: bytes | None = None) -> Result:
    environment = {"CONVMLP_DEVICE": "cpu", "CONVMLP_COMPUTE_THREADS": "1"}
    if store:
        environment["CONVMLP_MODELS_DIR"] = str(store)
    return CliRunner().invoke(app, [*arguments, "--local"], env=environment, input=stdin)


async def test_local_results_equal_the_services(store: Path) -> None:
    """For every task, for all and for vectors, `--local` writes what `convmlp serve` answers in fp32, on one thread.

    On some processors the last digit depends on the number of threads: docs/precision.md.
    """
    options = ["--compute-threads", "1"]
    options += ["--http-port", "0", "--grpc-port", "0", "--worker-metrics-port", "0", "--log-format", "json"]
    options += ["--device", "cpu", "--precision", "exact", "--models-dir", str(store), "--models", ",".join(FAMILIES)]
    async with started("serve", *options) as process, httpx2.AsyncClient(timeout=60) as http:
        assert process.stderr is not None
        log = (json.loads(line) async for line in process.stderr)
        url = await anext(line["url"] async for line in log if line["event"] == "ready" and "url" in line)
        while (await http.get(f"{url}/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
        picture = REFERENCE_PICTURE.read_bytes()
        for task in FAMILIES:
            answer = await http.post(f"{url}/{task}", content=picture)
            drawing = await http.post(f"{url}/{task}", content=picture, headers={"Accept": "image/png"})
            assert (answer.status_code, drawing.status_code) == (200, 200)
            # In threads: each command runs an event loop of its own.
            ran = await asyncio.to_thread(local, task, CAT, "--model", task, "--json", store=store)
            assert ran.stdout_bytes == answer.content + b"\n"
            target = str(store / "drawn.png")
            await asyncio.to_thread(local, task, CAT, "--model", task, "--save", target, store=store)
            assert (store / "drawn.png").read_bytes() == drawing.content
        names = ",".join(FAMILIES)
        answer = await http.post(f"{url}/analyze?models={names}", content=picture)
        drawing = await http.post(f"{url}/analyze?models={names}", content=picture, headers={"Accept": "image/png"})
        ran = await asyncio.to_thread(local, "analyze", CAT, "--models", names, "--json", store=store)
        assert ran.stdout_bytes == answer.content + b"\n"
        # Each model has its own indices for the names of classes.
        answer = await http.post(f"{url}/analyze?models={names}&classes=class+1", content=picture)
        options = ["--models", names, "--classes", "class 1", "--json"]
        ran = await asyncio.to_thread(local, "analyze", CAT, *options, store=store)
        assert ran.stdout_bytes == answer.content + b"\n"
        await asyncio.to_thread(local, "analyze", CAT, "--models", names, "--save", target, store=store)
        assert (store / "drawn.png").read_bytes() == drawing.content
        embedded = await http.post(f"{url}/embed?model=classify", content=picture)
        vectors = str(store / "vectors.npy")
        await asyncio.to_thread(local, "embed", CAT, "--model", "classify", "--out", vectors, store=store)
        assert np.load(vectors)[0].tolist() == embedded.json()["results"][0]["embedding"]
        process.terminate()
        await process.communicate()


@pytest.mark.parametrize(("task", "model"), list(zip(FAMILIES, EMBEDDED_MODELS, strict=True)))
def test_the_embedded_model_is_the_default(task: str, model: str) -> None:
    """Without --model and without a store, the task's embedded model is used."""
    ran = local(task, CAT)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[0] == f"{CAT}  451 x 300  {model}"


def test_a_bad_image_affects_no_other_image(store: Path, tmp_path: Path) -> None:
    """The other images, stdin among them, have their results; stderr and the exit status report the bad one."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(REFERENCE_PICTURE.read_bytes()[:5000])
    arguments = ["classify", CAT, str(broken), "-", "http://127.0.0.1:1/b", "--model", "classify", "--json"]
    ran = local(*arguments, store=store, stdin=REFERENCE_PICTURE.read_bytes())
    assert ran.exit_code == 1
    first, second, third, fourth = json.loads(ran.stdout)["results"]
    assert first == third
    assert second["error"]["type"] == "/problems/image-undecodable"
    assert fourth["error"]["detail"] == "cannot be downloaded: connection refused"
    assert f"{broken}: the JPEG is damaged (premature end" in ran.stderr


@pytest.mark.parametrize(
    ("task", "model", "why"),
    [("classify", "unknown", "there is no model 'unknown' in the store"), ("classify", "detect", "is for 'detect'")],
)
def test_a_wrong_model_is_an_error(store: Path, task: str, model: str, why: str) -> None:
    """A model that is not in the store, or for another task, is an error message with exit status 1."""
    ran = local(task, CAT, "--model", model, store=store)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert why in ran.stderr


def test_parameters_shape_the_answer(store: Path) -> None:
    """The flags mean the same as with a service."""
    labels = json.loads(local("classify", CAT, "--model", "classify", "--top-k", "2", "--json", store=store).stdout)
    assert len(labels["results"][0]["labels"]) == 2
    found = json.loads(local("detect", CAT, "--model", "detect", "--no-masks", "--json", store=store).stdout)
    assert found["results"][0]["detections"]
    assert not any("mask" in one for one in found["results"][0]["detections"])


def test_a_drawing_that_cannot_be_written_is_an_error(store: Path, tmp_path: Path) -> None:
    """If the folder of the drawing is a file, the error message has the reason."""
    (tmp_path / "file").touch()
    ran = local("classify", CAT, "--model", "classify", "--save", str(tmp_path / "file/out.png"), store=store)
    assert ran.exit_code == 1
    assert "cannot be written" in ran.stderr


async def test_without_torch_the_extra_is_named() -> None:
    """Calling a service needs no torch. The error of --local names the extra that installs it."""
    script = "import sys; sys.modules['torch'] = None; from service.cli.app import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "classify", CAT, "--local"), stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert error == b"convmlp: --local needs torch, which is not installed; install this package's extra `worker`\n"
