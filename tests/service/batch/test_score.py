from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from model.errors import BundleInvalid, ImageUndecodable
from model.net.weights import write_bundle
from model.predictor import reference_answer
from model.types import Task
from service.batch.plan import Plan, read_plan
from service.batch.samples import Sample, SampleError
from service.batch.score import DecodeMemory, Scorer
from service.errors import BadParameter, ModelNotFound
from service.settings import Settings
from tests.model.tiny_models import metadata, tiny_network
from tests.service.batch.pictures import picture

FAMILIES = {"classify": "classifier", "detect": "mask_rcnn", "segment": "semantic_fpn"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with a random model for each task, named after it."""
    folder = tmp_path_factory.mktemp("store")
    for task, family in FAMILIES.items():
        write_bundle(folder, metadata(family, name=task), tiny_network(family), reference_answer)
    return Settings(models_dir=folder, models=tuple(FAMILIES), device="cpu", precision=("exact",), compute_threads=2)


def scored(plan: Plan, samples: Iterable[tuple[str, bytes | SampleError]]) -> dict[str, Any]:
    """The rows by their ids, each of which has one."""
    scorer = Scorer(plan)
    lines = [json.loads(row.line) for rows in scorer.score(Sample(*one) for one in samples) for row in rows]
    scorer.close()
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def test_a_row_does_not_depend_on_its_batch(settings: Settings) -> None:
    """Pictures of several shapes, and broken ones among them: each row is the one that the picture gets alone."""
    plan = read_plan(b"score_threshold=0.4&mask_format=polygon", [Task.DETECT], settings, batch_images=3)
    samples: list[tuple[str, bytes | SampleError]] = [
        (f"{number}.jpg", picture(number, width=64 + 32 * (number % 2))) for number in range(7)
    ]
    samples.insert(2, ("broken.jpg", picture(1)[:100]))
    samples.insert(5, ("missing.jpg", ImageUndecodable("cannot be read: No such file or directory")))
    together = scored(plan, samples)
    assert together["missing.jpg"]["error"]["detail"] == "cannot be read: No such file or directory"
    assert (together["broken.jpg"]["error"]["status"], together["broken.jpg"]["error"]["instance"]) == (
        400,
        "broken.jpg",
    )
    for sample in samples:
        assert scored(plan, [sample])[sample[0]] == together[sample[0]]
    assert sum(len(row.get("detections", ())) for row in together.values()) > 0


def test_several_models_answer_from_one_decoding(settings: Settings) -> None:
    """The answers are those of each model alone, and an error of one costs no other its answer."""
    query = b"mask_format=rle&tiles=64"
    small, large = ("small.png", picture(3, "PNG", 120, 100)), ("large.png", picture(4, "PNG", 640, 640))
    limited = settings.with_changes(max_tiles=9)
    found = scored(read_plan(query, list(Task), limited, 2), [small, large])
    assert list(found["small.png"]["answers"]) == ["classify", "detect", "segment"]
    assert found["small.png"]["image"] == {"width": 120, "height": 100}
    for task in Task:
        alone = read_plan(query if task is not Task.CLASSIFY else b"", [task], limited, 2)
        assert {"id": "small.png", **found["small.png"]["answers"][task]} == scored(alone, [small])["small.png"]
    answers = found["large.png"]["answers"]
    assert "labels" in answers["classify"]
    assert answers["detect"]["error"]["type"] == "/problems/image-too-large"
    assert answers["detect"]["error"]["instance"] == "large.png%23detect"
    # Where no model can answer, the row is an error.
    both = read_plan(query, [Task.DETECT, Task.SEGMENT], limited, 2)
    assert scored(both, [large])["large.png"]["error"]["type"] == "/problems/image-too-large"


def test_threads_share_the_models(settings: Settings) -> None:
    """Units that are scored at once get the rows that they get one after the other."""
    plan = read_plan(b"top_k=2", [Task.CLASSIFY], settings)
    scorer = Scorer(plan)
    units = [[Sample(f"{unit}/{number}", picture(10 * unit + number)) for number in range(5)] for unit in range(4)]
    found: dict[str, bytes] = {}

    def score(unit: list[Sample]) -> None:
        for rows in scorer.score(iter(unit)):
            found.update((row.id, row.line) for row in rows)

    threads = [threading.Thread(target=score, args=(unit,)) for unit in units]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {row.id: row.line for unit in units for rows in scorer.score(iter(unit)) for row in rows}
    assert found == expected
    assert len(found) == 20
    assert scorer.precisions == {"classify": "exact"}


def test_a_plan_is_checked_before_anything_is_loaded(settings: Settings) -> None:
    """Parameters that no model has, tasks without a model, and models of other tasks are refused, as by the service."""
    with pytest.raises(BadParameter, match="parameter 'top_k' does not belong to detect"):
        read_plan(b"top_k=3", [Task.DETECT], settings)
    with pytest.raises(BadParameter, match="parameter 'classes'"):
        read_plan(b"classes=unicorn", [Task.DETECT], settings)
    with pytest.raises(ModelNotFound, match="none of classify is for 'detect'"):
        read_plan(b"", [Task.DETECT], settings.with_changes(models=("classify",)))
    with pytest.raises(BadParameter, match="the models and the tasks do not fit: detect"):
        read_plan(b"models=segment,detect", [Task.SEGMENT], settings)
    plan = read_plan(b"models=segment,detect&classes=1", [], settings)
    assert [one.answer for one in plan.models] == ["segment", "detect"]
    assert plan.models[1].parameters["classes"] == (1,)


def test_pictures_wait_for_memory() -> None:
    """Two that together exceed the limit are not decoded at once; one beyond the limit is decoded alone."""
    memory = DecodeMemory(100)
    entered, release = threading.Event(), threading.Event()

    def decode() -> None:
        with memory.reserved(60):
            entered.set()
            release.wait(10)

    with memory.reserved(1000):
        thread = threading.Thread(target=decode)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(10)
    release.set()
    thread.join()


def test_a_model_that_is_replaced_meanwhile_is_not_used(settings: Settings, tmp_path: Path) -> None:
    """All rows of a job are of the model that its manifest names."""
    write_bundle(tmp_path, metadata("classifier", name="one"), tiny_network("classifier"), reference_answer)
    plan = read_plan(b"models=one", [], settings.with_changes(models_dir=tmp_path))
    plan.models[0].bundle()
    path = tmp_path / "one/config.json"
    config = json.loads(path.read_text())
    config["labels"][0] = "other"
    path.write_text(json.dumps(config))
    with pytest.raises(BundleInvalid, match="was replaced meanwhile"):
        plan.models[0].bundle()
