from __future__ import annotations

from pathlib import Path

import pytest

from convmlp_client.geometry import ImageSize
from convmlp_client.results import Classification, Label, Meta
from convmlp_client.results import Task as ClientTask
from model.errors import ImageUndecodable
from model.types import Task
from service.errors import DeadlineExceeded, Unavailable
from service.evaluation.dataset import DataInvalid, Dataset
from service.evaluation.formats import read_dataset
from service.evaluation.predictions import (
    PREDICTIONS_FILE,
    SERVICE_ERRORS,
    Manifest,
    ModelIdentity,
    PredictionError,
    open_log,
    predict_all,
)
from tests.service.evaluation.data_sets import write_class_folders

MODEL = ModelIdentity("pets", Task.CLASSIFY, ("cat", "dog"), "0" * 64, "exact")
RESULT = Classification(ImageSize(40, 30), (Label("cat", 0, 0.75),), Meta("", ClientTask.CLASSIFY))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return read_dataset(write_class_folders(tmp_path / "data", {"cat": 4, "dog": 3}), Task.CLASSIFY)


def manifest(dataset: Dataset, model: ModelIdentity = MODEL) -> Manifest:
    return Manifest.of(model, dataset, dataset.sha256(), {"top_k": 5})


async def test_a_run_that_stops_continues(dataset: Dataset, tmp_path: Path) -> None:
    """An error of the service stops the run; the next one predicts what is missing, and drops a torn line."""
    answered: list[bytes] = []

    async def predict(image: bytes) -> Classification:
        if len(answered) == 3:
            raise Unavailable("the worker is lost", 1.0)
        answered.append(image)
        return RESULT

    out = tmp_path / "out"
    with open_log(out, manifest(dataset)) as log, pytest.raises(Unavailable):
        await predict_all(predict, dataset.samples, log, concurrency=2, stopping=SERVICE_ERRORS)
    file = out / PREDICTIONS_FILE
    before = file.read_bytes()
    with file.open("ab") as torn:
        torn.write(b'{"image":"dog/2.png","resu')
    answered.clear()

    async def succeed(image: bytes) -> Classification:
        answered.append(image)
        return RESULT

    advanced: list[None] = []
    with open_log(out, manifest(dataset)) as log:
        assert len(log.done) == 3
        await predict_all(
            succeed, dataset.samples, log, concurrency=2, stopping=SERVICE_ERRORS, advance=lambda: advanced.append(None)
        )
        assert sorted(name for name, _ in log.results()) == [sample.name for sample in dataset.samples]
        assert all(result == RESULT for _, result in log.results())
    assert (len(answered), len(advanced)) == (4, 4)
    assert file.read_bytes().startswith(before)


async def test_a_picture_that_cannot_be_read_is_a_line(dataset: Dataset, tmp_path: Path) -> None:
    """The file's and the decoder's errors are results like any other: they are not predicted again."""
    dataset.samples[0].path.unlink()

    async def predict(image: bytes) -> Classification:
        if image == dataset.samples[1].path.read_bytes():
            raise ImageUndecodable("the PNG is damaged")
        return RESULT

    with open_log(tmp_path / "out", manifest(dataset)) as log:
        await predict_all(predict, dataset.samples, log, concurrency=1, stopping=SERVICE_ERRORS)
        found = dict(log.results())
    assert found["cat/0.png"] == PredictionError("image-undecodable", "cannot be read: No such file or directory")
    assert found["cat/1.png"] == PredictionError("image-undecodable", "the PNG is damaged")
    with open_log(tmp_path / "out", manifest(dataset)) as log:
        assert len(log.done) == len(dataset.samples)


def test_a_folder_is_of_one_run(dataset: Dataset, tmp_path: Path) -> None:
    """Another model, other data, a second run at the same time and damaged lines are refused, with the difference."""
    out = tmp_path / "out"
    with open_log(out, manifest(dataset)), pytest.raises(DataInvalid, match="another run writes to"):
        open_log(out, manifest(dataset)).__enter__()
    other = ModelIdentity("pets", Task.CLASSIFY, ("cat", "dog"), "1" * 64, "fp32")
    with pytest.raises(DataInvalid, match=r"another run: weights sha256 0+, now 1+; precision exact, now fp32"):
        open_log(out, manifest(dataset, other)).__enter__()
    dataset.samples[0].path.unlink()
    with pytest.raises(DataInvalid, match="another run: data sha256"):
        open_log(out, manifest(dataset)).__enter__()
    (out / PREDICTIONS_FILE).write_bytes(b"{}\n{}\n")
    with pytest.raises(DataInvalid, match="another run"):
        open_log(out, manifest(dataset)).__enter__()


def test_damaged_lines_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    """A line in the middle that is no prediction is not passed over: its picture would be missing in the figures."""
    with open_log(tmp_path, manifest(dataset)):
        pass
    (tmp_path / PREDICTIONS_FILE).write_bytes(b'{"image": 3}\n{"image": "cat/0.png"}\n')
    with pytest.raises(DataInvalid, match="line 1 is damaged"):
        open_log(tmp_path, manifest(dataset)).__enter__()


async def test_what_a_service_failed_at_is_predicted_again(dataset: Dataset, tmp_path: Path) -> None:
    """A timeout of one picture does not end the run, and is not the picture's last word: its last line counts."""

    async def time_out(image: bytes) -> Classification:
        if image == dataset.samples[0].path.read_bytes():
            raise DeadlineExceeded("no reply within 120 s")
        return RESULT

    async def succeed(_: bytes) -> Classification:
        return RESULT

    with open_log(tmp_path / "out", manifest(dataset)) as log:
        await predict_all(time_out, dataset.samples, log, concurrency=1, stopping=SERVICE_ERRORS)
        assert dict(log.results())["cat/0.png"] == PredictionError("deadline-exceeded", "no reply within 120 s")
    with open_log(tmp_path / "out", manifest(dataset)) as log:
        assert {sample.name for sample in dataset.samples} - set(log.done) == {"cat/0.png"}
        await predict_all(succeed, dataset.samples, log, concurrency=1, stopping=SERVICE_ERRORS)
        results = list(log.results())
        assert len(results) == len(dataset.samples)
        assert ("cat/0.png", RESULT) in results
