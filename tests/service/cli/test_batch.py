from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model.net.weights import write_bundle
from model.predictor import reference_answer
from tests.model.tiny_models import metadata, tiny_network
from tests.service.batch.pictures import picture, write_pictures
from tests.service.cli.convmlp_command import convmlp, started
from tests.waiting import until

FAMILIES = {"classify": "classifier", "detect": "mask_rcnn"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A store with a random model for each of two tasks, named after it."""
    folder = tmp_path_factory.mktemp("store")
    for task, family in FAMILIES.items():
        write_bundle(folder, metadata(family, name=task), tiny_network(family), reference_answer)
    return {
        "CONVMLP_MODELS_DIR": str(folder),
        "CONVMLP_MODELS": ",".join(FAMILIES),
        "CONVMLP_DEVICE": "cpu",
        "CONVMLP_PRECISION": "exact",
        # On some processors the last digit depends on the number of threads: docs/precision.md.
        "CONVMLP_COMPUTE_THREADS": "1",
    }


def rows(out: Path) -> list[dict[str, Any]]:
    """The whole rows of a folder, in their order."""
    lines = [line for path in sorted(out.glob("part-*")) for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def written(out: Path) -> int:
    """Bytes of rows."""
    return sum(path.stat().st_size for path in out.glob("part-*"))


async def test_a_killed_job_continues(environment: dict[str, str], tmp_path: Path) -> None:
    """SIGKILL, then Ctrl-C, then to the end: each picture has one row. Once it is finished, nothing is done again; with
    other parameters the folder is refused."""
    names = write_pictures(tmp_path / "in", 600)
    out = tmp_path / "out"
    command = ["batch", str(tmp_path / "in"), str(out), "--task", "classify"]

    async def stopped_by(number: signal.Signals, more: Sequence[str] = ()) -> tuple[int | None, str]:
        before = written(out)
        async with started(*command, *more, environment=environment) as process:
            await until(lambda: written(out) > before or process.returncode is not None)
            process.send_signal(number)
            _, err = await process.communicate()
        return process.returncode, err.decode()

    assert (await stopped_by(signal.SIGKILL))[0] == -signal.SIGKILL
    killed = rows(out)
    assert 0 < len(killed) < len(names)
    # Ctrl-C in the terminal goes to all processes of the command.
    status, err = await stopped_by(signal.SIGINT)
    interrupted = rows(out)
    assert status == 128 + signal.SIGINT
    assert err.splitlines() == [
        f"convmlp: {len(killed)} pictures were scored before",
        f"convmlp: stopped; {len(interrupted)} pictures have rows in {out}; the same command goes on from there",
    ]
    assert interrupted[: len(killed)] == killed
    done = await convmlp(*command, environment=environment)
    assert (done.status, done.out.decode()) == (0, f"{len(names)} pictures -> {out}\n")
    assert sorted(row["id"] for row in rows(out)) == names
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["finished"], manifest["pictures"], manifest["errors"]) == (True, len(names), {})
    assert manifest["job"]["models"][0]["precision"] == "exact"
    again = await convmlp(*command, environment=environment)
    assert (again.status, again.err) == (
        0,
        f"convmlp: all {len(names)} pictures were scored before; {out} has their results\n",
    )
    other = await convmlp(*command, "--top-k", "3", environment=environment)
    assert (other.status, "results of another job: top k 5, now 3" in other.err) == (1, True)


async def test_rows_are_what_the_other_commands_answer(environment: dict[str, str], tmp_path: Path) -> None:
    """Of several tasks as `analyze --local --json`. A picture that cannot be read has its error; the status is 1."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(picture(1, width=120))
    (tmp_path / "in/b.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    ran, local = await asyncio.gather(
        convmlp("batch", f"{tmp_path}/in", str(out), "--task", "classify,detect", environment=environment),
        convmlp("analyze", f"{tmp_path}/in/a.jpg", "--local", "--json", environment=environment),
    )
    assert (ran.status, ran.out.decode()) == (1, f"2 pictures -> {out}; 1 error: 1 unsupported-format\n")
    found = {row["id"]: row for row in rows(out)}
    (expected,) = json.loads(local.out)["results"]
    assert found["a.jpg"] == {"id": "a.jpg", **expected}
    assert found["b.jpg"]["error"]["status"] == 415


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "name a --task (classify, detect, segment), or a --model"),
        (("--task", "describe"), 2, "--task describe is not one of classify, detect, segment"),
        (("--task", "detect", "--top-k", "3"), 2, "parameter 'top_k' does not belong to detect"),
        (("--task", "classify", "--format", "coco"), 2, "COCO's document has the boxes and masks of one model"),
        (("--task", "classify", "--precision", "fp99"), 2, "fp99"),
        (("--model", "unknown"), 1, "unknown"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    """Before anything is read or loaded, with what was expected."""
    (tmp_path / "a.jpg").write_bytes(b"")
    ran = await convmlp("batch", str(tmp_path), str(tmp_path / "out"), *arguments, environment=environment)
    assert ran.status == status
    assert message in " ".join(ran.err.replace("│", " ").split())
