from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from model.net.weights import write_bundle
from model.predictor import reference_answer
from model.types import Task
from service.batch.job import Job, finish
from service.batch.manifest import JobEntry
from service.batch.plan import Plan, read_plan
from service.batch.pool import Event, Scored
from service.batch.ray_pool import LOCAL, RayPool
from service.batch.sinks import open_results
from service.batch.sources import open_source
from service.batch.storage import PackageMissing
from service.errors import BadParameter
from service.settings import Settings
from tests.model.tiny_models import metadata, tiny_network
from tests.service.batch.pictures import write_pictures


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    write_bundle(
        tmp_path / "store", metadata("classifier", name="classify"), tiny_network("classifier"), reference_answer
    )
    settings = Settings(models_dir=tmp_path / "store", models=("classify",), device="cpu", precision=("exact",))
    return read_plan(b"", [Task.CLASSIFY], settings)


class KilledOnce(RayPool):
    """One of its actors is killed once it has sent a row."""

    killed = False

    def events(self, timeout_s: float) -> Iterator[Event]:
        for event in super().events(timeout_s):
            if isinstance(event, Scored) and not self.killed:
                self.killed = True
                self._ray.kill(self._actors[0].handle)
            yield event


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: the extra `cluster`")
@pytest.mark.timeout(600)  # a busy machine starts Ray and two actors, with torch, in minutes
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_killed_actor_costs_no_picture(plan: Plan, tmp_path: Path) -> None:
    """Ray starts with nothing set up; another actor takes the place of one that ends, and each picture has one row."""
    names = write_pictures(tmp_path / "in", 150)
    source, out = open_source(str(tmp_path / "in")), tmp_path / "out"
    with open_results(out, JobEntry.of("/data", "jsonl", plan)) as results, closing(KilledOnce(LOCAL, 1)) as pool:
        assert pool.start(plan, lambda: False) == {"classify": "exact"}
        results.begin({"classify": "exact"}, pool.devices)
        assert Job(source, results, pool, Silent()).run(lambda: False)
        finish(plan, source, results)
        assert pool.killed
        assert (results.errors, results.repeats) == ({}, 0)
    (part,) = out.glob("part-*")
    assert sorted(json.loads(line)["id"] for line in part.read_bytes().splitlines()) == names


class Silent:
    def update(self, done: int, total: int | None, errors: int) -> None: ...


def test_what_cannot_be_reached_is_refused() -> None:
    """Ray Client's addresses, and any without Ray: the error names what to do."""
    with pytest.raises(BadParameter, match="ray:// does not work"):
        RayPool("ray://host:10001")
    if find_spec("ray") is None:
        with pytest.raises(PackageMissing, match="install this package's extra `cluster`"):
            RayPool("auto")
