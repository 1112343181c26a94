"""Results in an object store, over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from model.errors import ImageUndecodable
from model.net.weights import write_bundle
from model.predictor import reference_answer
from service.batch.coco import write_coco
from service.batch.folders import ResultsInvalid
from service.batch.manifest import Manifest, read_manifest
from service.batch.score import Row, error_row
from service.batch.sinks import open_results
from service.batch.storage import StorageFailed
from service.errors import Overloaded
from tests.model.tiny_models import metadata, tiny_network
from tests.service.batch.object_store import ObjectStore, object_store
from tests.service.batch.pictures import has_exactly, picture
from tests.service.batch.test_sinks import RLE, job, labels, row
from tests.service.cli.convmlp_command import convmlp, started
from tests.waiting import until

OUT = "s3://results/run/1"
MANIFEST = "results/run/1/manifest.json"


@pytest.fixture
def store(credentials: dict[str, str]) -> Iterator[ObjectStore]:  # noqa: ARG001
    pytest.importorskip("pyarrow")
    with object_store({}) as running:
        yield running


def ids_in(store: ObjectStore) -> list[str]:
    """Of all rows of JSON in the store, in the order of its parts."""
    parts = sorted(name for name in store.objects if "/part-" in name)
    return [json.loads(line)["id"] for name in parts for line in store.objects[name].splitlines()]


def write(store: ObjectStore, *rows: Row) -> None:
    """A whole job."""
    with open_results(OUT, job(), store.url) as results:
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append(rows)
        results.close_parts()
        results.save_manifest("listing")


def manifest_in(store: ObjectStore) -> Manifest:
    with open_results(OUT, job(), store.url) as results:
        found = read_manifest(results.folder)
    assert found is not None
    return found


def test_a_run_goes_on_with_a_part_of_its_own(store: ObjectStore) -> None:
    """What was scored when a run ends is in the store; the next one knows its ids."""
    with open_results(OUT, job(), store.url) as results:
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append([labels("a"), labels("b")])
        assert list(store.objects) == [MANIFEST]
    assert sorted(store.objects) == [MANIFEST, "results/run/1/part-00000.jsonl"]
    with open_results(OUT, job(), store.url) as results:
        assert has_exactly(results.done, "a", "b")
    write(store, labels("b"), labels("c"), error_row("d", ImageUndecodable("empty")))
    assert ids_in(store) == ["a", "b", "c", "d"]
    found = manifest_in(store)
    assert (found.finished, found.pictures, found.repeats, found.writer) == (True, 4, 1, "")


def test_a_run_that_goes_on_is_not_disturbed(store: ObjectStore) -> None:
    """A second one sees the first one's manifest change, and is refused. Once the first no longer saves it, the second
    takes over; then the first is refused before it writes a part."""
    with ExitStack() as stack:
        first = stack.enter_context(open_results(OUT, job(), store.url))
        first.begin({"pets": "fp32"}, ["cpu"])
        first.append([labels("a")])
        ended = threading.Event()

        def save() -> None:
            while not ended.wait(0.2):
                first.manifest = msgspec.structs.replace(first.manifest, seconds=first.manifest.seconds + 1)
                first.save_manifest()

        saving = threading.Thread(target=save)
        saving.start()
        try:
            with pytest.raises(ResultsInvalid, match="another job writes to"), open_results(OUT, job(), store.url):
                pass
        finally:
            ended.set()
            saving.join()
        with open_results(OUT, job(), store.url, writer_s=0.5) as second:
            second.begin({"pets": "fp32"}, ["cpu"])
            second.append([labels("a")])
        with pytest.raises(ResultsInvalid, match="another job writes to"):
            stack.close()
    assert ids_in(store) == ["a"]


def test_a_store_that_takes_nothing_stops_the_job(store: ObjectStore) -> None:
    """What is in the store stays as it is, and the next run scores what did not arrive."""
    write(store, labels("a"))
    before = dict(store.objects)
    with open_results(OUT, job(), store.url) as results:
        store.full = True
        with pytest.raises(StorageFailed, match="the object store cannot be written"):
            results.begin({"pets": "fp32"}, ["cpu"])
    assert store.objects == before
    store.full = False
    write(store, labels("a"), labels("b"))
    assert ids_in(store) == ["a", "b"]


def test_parquet_and_coco_in_a_store(store: ObjectStore) -> None:
    """Both are written here first, and read again for the next run and for the document."""
    box = {"xmin": 1.0, "ymin": 0.0, "xmax": 2.0, "ymax": 4.0}
    found = row("a", detections=[{"label": "cat", "index": 0, "score": 0.75, "box": box, "mask": RLE}])
    for form in ("parquet", "coco"):
        entry = job(form, task="detect", mask_format="rle")
        with open_results(f"{OUT}/{form}", entry, store.url) as results:
            results.begin({"pets": "fp32"}, ["cpu"])
            results.append([found, error_row("b", ImageUndecodable("empty"))])
        with open_results(f"{OUT}/{form}", entry, store.url) as results:
            assert has_exactly(results.done, "a", "b")
            assert results.errors == {"image-undecodable": 1}
            if form == "coco":
                made = results.folder.work / "made"
                write_coco(results.lines, made, entry, ("cat", "dog"))
                results.folder.publish(made, "coco.json")
    document = json.loads(store.objects["results/run/1/coco/coco.json"])
    assert [one["bbox"] for one in document["annotations"]] == [[1, 0, 1, 4]]


def test_rows_with_transient_errors_are_removed_there_too(store: ObjectStore) -> None:
    """They are an object of their own until the next run begins."""
    write(store, labels("a"), error_row("b", Overloaded("no memory")))
    assert store.objects["results/run/1/part-retry.jsonl"].startswith(b'{"id":"b"')
    with open_results(OUT, job(), store.url) as results:
        assert has_exactly(results.done, "a")
        results.begin({"pets": "fp32"}, ["cpu"])
        assert "results/run/1/part-retry.jsonl" not in store.objects
        results.append([labels("b")])
    assert ids_in(store) == ["a", "b"]


def test_what_is_no_prefix_is_refused(credentials: dict[str, str]) -> None:  # noqa: ARG001
    """Before anything is loaded."""
    for out in ("s3://", "ftp://host/folder"):
        with pytest.raises(ResultsInvalid, match="expected a folder, or s3://BUCKET/PREFIX"), open_results(out, job()):
            pass


KILLED = """
import os, signal, sys
from service.batch.sinks import open_results
from tests.service.batch.test_sinks import job, labels
with open_results(sys.argv[1], job(), sys.argv[2]) as results:
    results.begin({"pets": "fp32"}, ["cpu"])
    results.append([labels("a")])
    results.close_part()
    results.append([labels("b")])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_more_than_the_part_that_was_written(store: ObjectStore) -> None:
    """The next run waits for a sign of the one that was killed, and then has the rows of the closed parts."""
    assert subprocess.run([sys.executable, "-c", KILLED, OUT, store.url], check=False).returncode == -signal.SIGKILL
    assert ids_in(store) == ["a"]
    with open_results(OUT, job(), store.url, writer_s=0.5) as results:
        assert has_exactly(results.done, "a")
        results.begin({"pets": "fp32"}, ["cpu"])
        assert results.append([labels("a"), labels("b")]) == 1
    assert ids_in(store) == ["a", "b"]


async def test_pictures_and_results_in_a_store(store: ObjectStore, credentials: dict[str, str], tmp_path: Path) -> None:
    """The command reads from a store and writes to it, is stopped, and goes on to the end with one row for each."""
    write_bundle(
        tmp_path / "store", metadata("classifier", name="classify"), tiny_network("classifier"), reference_answer
    )
    environment = {
        **credentials,
        "AWS_ENDPOINT_URL": store.url,
        "CONVMLP_MODELS_DIR": str(tmp_path / "store"),
        "CONVMLP_DEVICE": "cpu",
        "CONVMLP_PRECISION": "exact",
    }
    names = [f"{number:03d}.jpg" for number in range(300)]
    store.objects.update({f"pictures/{name}": picture(number % 7) for number, name in enumerate(names)})
    command = ["batch", "s3://pictures", OUT, "--model", "classify"]
    async with started(*command, environment=environment) as process:
        await until(lambda: MANIFEST in store.objects or process.returncode is not None)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, "the same command goes on from there" in err.decode()) == (130, True)
    done = await convmlp(*command, environment=environment)
    assert (done.status, done.out.decode()) == (0, f"300 pictures -> {OUT}\n")
    assert sorted(ids_in(store)) == names
    again = await convmlp(*command, environment=environment)
    assert (again.status, "all 300 pictures were scored before" in again.err) == (0, True)
