from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from convmlp_client.masks import Mask
from model.errors import ImageUndecodable
from service.batch import sinks
from service.batch.coco import require_coco, write_coco
from service.batch.folders import LocalFolder, ResultsInvalid
from service.batch.manifest import JobEntry, ModelEntry, read_manifest
from service.batch.score import Row, crash_row, error_row
from service.batch.sinks import OutputFormat, Results, open_results
from service.errors import BadParameter, Overloaded
from tests.service.batch.pictures import has_exactly

RLE = dict(Mask.from_array(np.tile(np.arange(6) == 1, (4, 1))).rle())
"""The second column of a picture of 6 x 4 pixels."""


def job(output_format: str = "jsonl", precision: str = "fp32", task: str = "classify", **parameters: Any) -> JobEntry:  # noqa: ANN401
    models = (ModelEntry(task, "pets", task, "v1", "0" * 64, precision, parameters),)
    return JobEntry("/data", output_format, models)


def row(sample_id: str, **members: Any) -> Row:  # noqa: ANN401
    return Row(sample_id, msgspec.json.encode({"id": sample_id, "image": {"width": 6, "height": 4}, **members}))


def labels(sample_id: str) -> Row:
    return row(sample_id, labels=[{"label": "cat", "index": 0, "score": 0.75}])


def write(folder: Path, entry: JobEntry, *rows: Row) -> Results:
    with open_results(folder, entry) as results:
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append(rows)
        results.close_part()
        results.save_manifest()
        return results


def test_rows_outlive_the_process(tmp_path: Path) -> None:
    """What was appended is read again, but for a line that was torn; the part goes on where it ended."""
    with open_results(tmp_path, job()) as results:
        results.begin({"pets": "fp32"}, ["cpu"])
        assert results.append([labels("a"), labels("b"), labels("a")]) == 2
        assert results.repeats == 1
    (partial,) = tmp_path.glob("part-*")
    whole = partial.read_bytes()
    partial.write_bytes(whole + b'{"id":"c","ima')
    with open_results(tmp_path, job()) as results:
        assert has_exactly(results.done, "a", "b")
        results.append([labels("c"), error_row("d", ImageUndecodable("empty"))])
        results.close_part()
    (part,) = tmp_path.glob("part-*")
    assert part.name == "part-00000.jsonl"
    assert part.read_bytes().startswith(whole)
    assert [json.loads(line)["id"] for line in part.read_bytes().splitlines()] == ["a", "b", "c", "d"]
    with open_results(tmp_path, job()) as results:
        assert has_exactly(results.done, "a", "b", "c", "d")
        assert results.errors == {"image-undecodable": 1}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_with_transient_errors_are_scored_again(tmp_path: Path, form: str) -> None:
    """They are in a part of their own, which the next run removes once it has loaded its models; the others stay."""
    pytest.importorskip("pyarrow")
    entry = job(form)
    with open_results(tmp_path, entry) as results:
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append([labels("a"), error_row("b", Overloaded("no memory")), crash_row("c")])
        assert results.append([labels("b")]) == 0
        results.close_parts()
        results.save_manifest("listing")
    assert [path.name for path in sorted(tmp_path.glob("part-*"))] == [f"part-00000.{form}", f"part-retry.{form}"]
    manifest = read_manifest(LocalFolder(tmp_path))
    assert manifest is not None
    assert (manifest.pictures, manifest.transient_errors) == (3, 2)
    with open_results(tmp_path, entry) as results:
        assert has_exactly(results.done, "a")
        assert results.errors == {}
        assert (tmp_path / f"part-retry.{form}").exists()
        results.begin({"pets": "fp32"}, ["cpu"])
        assert not (tmp_path / f"part-retry.{form}").exists()
        results.append([labels("b"), crash_row("c")])
    # This run was stopped: what it had no answer for is scored once more.
    with open_results(tmp_path, entry) as results:
        assert has_exactly(results.done, "a", "b")
    assert [path.name for path in tmp_path.glob("part-*retry*")] == []


def test_a_part_that_is_one_torn_line_is_empty(tmp_path: Path) -> None:
    """A process that was killed at its first row leaves nothing behind."""
    write(tmp_path, job(), labels("a"))
    (tmp_path / "part-00001.jsonl.partial").write_bytes(b'{"id":"b"' + b" " * 100_000)
    with open_results(tmp_path, job()) as results:
        assert has_exactly(results.done, "a")
        results.append([labels("b")])
        results.close_part()
    assert (tmp_path / "part-00001.jsonl").read_bytes() == labels("b").line + b"\n"


def test_results_of_another_job_are_refused(tmp_path: Path) -> None:
    """The error names what differs. A precision `auto` is the one of the earlier run, any other must be equal."""
    write(tmp_path, job(top_k=5), labels("a"))
    with pytest.raises(ResultsInvalid, match="results of another job: top k 5, now 3; name another folder"):
        write(tmp_path, job(top_k=3))
    with pytest.raises(ResultsInvalid, match="precision fp32, now bf16"):
        write(tmp_path, job(precision="bf16", top_k=5))
    with pytest.raises(ResultsInvalid, match="format jsonl, now coco"):
        write(tmp_path, job("coco", top_k=5))
    with pytest.raises(ResultsInvalid, match="id column None, now key"):
        write(tmp_path, msgspec.structs.replace(job(top_k=5), id_column="key"))
    with open_results(tmp_path, job(precision="auto", top_k=5)) as results:
        assert results.manifest.job.precisions == {"pets": "fp32"}


def test_what_is_no_folder_of_results_is_refused(tmp_path: Path) -> None:
    """Results without a manifest, a manifest that is none, a damaged row, and a folder that another job writes to."""
    with open_results(tmp_path / "open", job()), pytest.raises(ResultsInvalid, match="another job writes to"):
        write(tmp_path / "open", job())
    write(tmp_path / "damaged", job(), labels("a"))
    part = tmp_path / "damaged/part-00000.jsonl"
    part.write_bytes(b"{\n" + part.read_bytes())
    with pytest.raises(ResultsInvalid, match=r"row 1 of a part in .* is damaged"):
        write(tmp_path / "damaged", job())
    (tmp_path / "damaged/manifest.json").unlink()
    with pytest.raises(ResultsInvalid, match="has results without a manifest"):
        write(tmp_path / "damaged", job())
    (tmp_path / "damaged/manifest.json").write_text("{}")
    with pytest.raises(ResultsInvalid, match="is not a manifest of results"):
        write(tmp_path / "damaged", job())
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsInvalid, match="cannot be written"):
        write(tmp_path / "file", job())


def test_a_full_part_is_closed(tmp_path: Path) -> None:
    """A row larger than a part closes its own; the manifest counts the rows of all."""
    with open_results(tmp_path, job()) as results:
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append([Row("a", b'{"id":"a"}' + b" " * sinks.PART_BYTES)])
        results.append([labels("b")])
        results.close_part()
        results.save_manifest("listing")
    assert results.parts() == ["part-00000.jsonl", "part-00001.jsonl"]
    manifest = read_manifest(LocalFolder(tmp_path))
    assert manifest is not None
    assert (manifest.finished, manifest.pictures, manifest.devices) == (True, 2, ("cpu",))


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    """Each row equals the JSON; masks are nested, and pictures are bytes. A second run reads ids and errors."""
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    box = {"xmin": 1.0, "ymin": 0.0, "xmax": 2.0, "ymax": 4.0}
    found = row("a", detections=[{"label": "cat", "index": 0, "score": 0.75, "box": box, "mask": RLE}])
    entry = job("parquet", task="detect", mask_format="rle")
    write(tmp_path, entry, found, error_row("b", ImageUndecodable("empty")))
    (path,) = tmp_path.glob("part-*")
    first, second = pq.read_table(path).to_pylist()
    assert {**json.loads(found.line), "error": None} == first
    assert (second["detections"], second["error"]["status"]) == (None, 400)
    # The JSON of a part is still there if the process was killed between writing one and removing the other.
    (tmp_path / "part-00000.jsonl.partial").write_bytes(found.line + b"\n")
    with open_results(tmp_path, entry) as results:
        assert has_exactly(results.done, "a", "b")
        assert dict(results.errors) == {"image-undecodable": 1}
    assert not list(tmp_path.glob("*.partial"))
    maps = row("c", segments=[{"label": "cat", "index": 0, "area": 4, "confidence": 0.5, "mask": "QUJD"}])
    write(tmp_path / "png", job("parquet", task="segment", mask_format="png"), maps)
    (segments,) = pq.read_table(tmp_path / "png/part-00000.parquet").to_pylist()
    assert segments["segments"][0]["mask"] == b"ABC"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("mask", [RLE, [[1, 0, 2, 0, 2, 4, 1, 4]]])
def test_coco_is_read_by_pycocotools(tmp_path: Path, mask: Any) -> None:  # noqa: ANN401
    """Masks as run lengths and as polygons have their area; an error is no image; categories are the class indices."""
    coco = pytest.importorskip("pycocotools.coco")
    box = {"xmin": 1.0, "ymin": 0.0, "xmax": 2.0, "ymax": 4.0}
    found = row("a", detections=[{"label": "dog", "index": 1, "score": 0.75, "box": box, "mask": mask}])
    entry = job("coco", task="detect", mask_format="rle")
    results = write(tmp_path, entry, error_row("b", ImageUndecodable("empty")), found)
    write_coco(results.lines, tmp_path / "coco.json", entry, ("cat", "dog"))
    read = coco.COCO(str(tmp_path / "coco.json"))
    (annotation,) = read.loadAnns(read.getAnnIds())
    assert (annotation["bbox"], annotation["area"], annotation["score"]) == ([1, 0, 1, 4], 4, 0.75)
    assert read.annToMask(annotation).sum() == 4
    assert read.loadCats([annotation["category_id"]]) == [{"id": 1, "name": "dog"}]
    assert read.loadImgs([annotation["image_id"]]) == [{"id": 2, "file_name": "a", "width": 6, "height": 4}]
    assert read.dataset["errors"][0]["file_name"] == "b"


def test_segments_have_the_box_of_their_mask(tmp_path: Path) -> None:
    """COCO's annotations all have a box; that of a segment is what its pixels cover."""
    found = row("a", segments=[{"label": "cat", "index": 0, "area": 4, "confidence": 0.5, "mask": RLE}])
    entry = job("coco", task="segment", mask_format="rle")
    write_coco(write(tmp_path, entry, found).lines, tmp_path / "coco.json", entry, ("cat",))
    (annotation,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert (annotation["bbox"], annotation["area"], annotation["score"]) == ([1, 0, 1, 4], 4, 0.5)


def test_what_coco_cannot_express_is_refused() -> None:
    """Labels of whole pictures, and masks as PNGs, are refused before anything is scored."""
    for entry in (job("coco"), job("coco", task="detect", mask_format="png")):
        with pytest.raises(BadParameter, match="COCO's document has"):
            require_coco(entry)
    require_coco(job("coco", task="detect", mask_format="none"))
    assert OutputFormat("coco") is OutputFormat.COCO
