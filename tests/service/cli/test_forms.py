"""Several images: where they come from, and the forms in which their results are printed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from model.errors import ImageTooLarge, ImageUndecodable
from service.cli.image_reader import ImageReader
from service.cli.inputs import ImageFile, image_files
from tests.service.cli.convmlp_command import convmlp, started, url
from tests.service.frontend.picture_site import drips, open_site, redirects, sends
from tests.service.frontend.rest_server import Rest, picture


async def never(_: asyncio.StreamWriter) -> None:
    """Does not answer."""
    await asyncio.Event().wait()


async def results(rest: Rest, task: str, files: list[str]) -> list[Any]:
    """The service's own answer."""
    parts = [("image", file.read_bytes()) for file in map(Path, files)]
    answer: list[Any] = (await rest.http.post(f"/{task}", files=parts)).json()["results"]
    return answer


def test_folders_and_patterns_stand_for_their_pictures(tmp_path: Path) -> None:
    """Both are searched in all depths for files with an image's suffix that are not hidden; a file with such a name is
    itself."""
    for name in ("b.png", "a.JPG", "deep/er/c.webp", "notes.txt", "deep/[1].png", "._b.png", ".trash/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def named(*paths: str) -> list[str]:
        return [str(Path(file.path).relative_to(tmp_path)) for file in image_files(paths)]

    assert named(str(tmp_path)) == ["a.JPG", "b.png", "deep/[1].png", "deep/er/c.webp"]
    assert named(f"{tmp_path}/*") == ["a.JPG", "b.png"]
    assert named(f"{tmp_path}/**/*.[pw]*") == ["b.png", "deep/[1].png", "deep/er/c.webp"]
    assert named(f"{tmp_path}/deep/[1].png", f"{tmp_path}/notes.txt") == ["deep/[1].png", "notes.txt"]


async def test_pictures_are_downloaded(rest: Rest, tmp_path: Path) -> None:
    """The command downloads a URL itself, after redirections too, so it can draw on it as on a file."""
    async with open_site() as site:
        site.answers = {"/cat.png": sends(picture(100)), "/old": redirects("/cat.png")}
        urls = [site.url("/old"), site.url("/cat.png")]
        ran = await convmlp("detect", *urls, "--save", f"{tmp_path}/new/", "--url", url(rest))
    drawings = [tmp_path / "new/old.png", tmp_path / "new/cat.png"]
    assert (ran.status, ran.err) == (0, "")
    assert ran.lines == [f"{source} -> {target}" for source, target in zip(urls, drawings, strict=True)]
    response = await rest.http.post("/detect", content=picture(100), headers={"Accept": "image/png"})
    assert [drawing.read_bytes() for drawing in drawings] == [response.content] * 2


async def test_downloads_are_bounded() -> None:
    """In bytes, time and redirections; the errors are those of one image."""
    async with open_site() as site:
        site.answers = {"/large": drips(bytes(100)), "/loop": redirects("/loop"), "/never": never}
        site.answers["/missing"] = sends(b"", "HTTP/1.1 404 Not Found")
        async with ImageReader(timeout_s=30.0, max_bytes=1000) as reader:
            with pytest.raises(ImageTooLarge, match="more than 1,000 bytes"):
                await reader.read(ImageFile(site.url("/large")))
            with pytest.raises(ImageUndecodable, match="redirects"):
                await reader.read(ImageFile(site.url("/loop")))
            with pytest.raises(ImageUndecodable, match="the server answers 404"):
                await reader.read(ImageFile(site.url("/missing")))
            with pytest.raises(ImageUndecodable, match="cannot be downloaded: "):
                await reader.read(ImageFile("http://[/"))
        async with ImageReader(timeout_s=0.01) as impatient:
            with pytest.raises(ImageUndecodable, match=r"cannot be downloaded within 0\.01 s"):
                await impatient.read(ImageFile(site.url("/never")))


async def test_several_images_have_a_line_each(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """A line has the name and a summary of the result; a file that is no picture is reported."""
    (tmp_path / "105.png").write_bytes(b"no picture")
    ran = await convmlp("classify", str(tmp_path), "--top-k", "2", "--url", url(rest))
    assert ran.status == 1
    good = [file for file in files if not file.endswith("/105.png")]
    assert ran.lines == [f"{file}  grey {Path(file).stem} 0.50, grey {int(Path(file).stem) + 1} 0.25" for file in good]
    assert ran.err.startswith(f"convmlp: {tmp_path}/105.png: the image format is not supported")
    ran = await convmlp("analyze", *files[:2], "--top-k", "1", "--url", url(rest))
    assert ran.lines[0] == f"{files[0]}  classify: grey 100 0.50; detect: cat 0.90, dog 0.60; {SEGMENTS}"


SEGMENTS = "segment: background 50.0 %, cat 50.0 %"


async def test_csv_has_a_row_for_each_item(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """The columns are the task's; names are quoted where they need it; errors are on stderr alone."""
    odd = tmp_path / 'a "b",\nc.png'
    shutil.copy(files[0], odd)
    ran = await convmlp("detect", str(odd), files[1], f"{tmp_path}/no.png", "--format", "csv", "--url", url(rest))
    assert ran.status == 1
    assert "no.png: cannot be read" in ran.err
    first, *_, last = csv.DictReader(io.StringIO(ran.out.decode(), newline=""))
    assert first["file"] == str(odd)
    expected = {"width": "62", "height": "60", "task": "detect", "model": "fake_detect", "label": "cat", "index": "0"}
    assert first.items() >= {**expected, "score": "0.9", "xmin": "0.0", "ymax": "30.0"}.items()
    assert (last["file"], last["score"]) == (files[1], "0.6")
    header = (await convmlp("segment", files[0], "--format", "csv", "--url", url(rest))).lines[0]
    assert header == "file,width,height,task,model,label,index,area,confidence"


@pytest.mark.parametrize("task", ["classify", "detect", "segment", "analyze"])
async def test_json_lines_have_the_rest_results(rest: Rest, files: list[str], tmp_path: Path, task: str) -> None:
    """Each image has a line, in order: with what REST has in `results`, or with the error."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    ran = await convmlp(task, files[0], str(bad), files[1], "--format", "jsonl", "--url", url(rest))
    assert ran.status == 1
    lines = [json.loads(line) for line in ran.lines]
    assert [line["file"] for line in lines] == [files[0], str(bad), files[1]]
    assert lines[1]["error"]["status"] == 415
    assert [lines[0]["result"], lines[2]["result"]] == await results(rest, task, files[:2])
    assert {line["task"] for line in lines if "task" in line} == {task}
    assert ("models" if task == "analyze" else "model") in lines[0]


# A warning of pycocotools itself with NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("task", ["detect", "segment"])
async def test_coco_is_what_pycocotools_reads(rest: Rest, files: list[str], tmp_path: Path, task: str) -> None:
    """Images, categories, boxes and masks are those of the answer; the masks decode to the area."""
    ran = await convmlp(task, *files[:2], "--format", "coco", "--url", url(rest))
    assert ran.status == 0
    target = tmp_path / "found.json"
    target.write_bytes(ran.out)
    found = COCO(target)
    assert [image["file_name"] for image in found.loadImgs(found.getImgIds())] == files[:2]
    (answer,) = await results(rest, task, files[:1])
    items = answer["detections" if task == "detect" else "segments"]
    annotations = found.loadAnns(found.getAnnIds(imgIds=[1]))
    assert [found.cats[one["category_id"]]["name"] for one in annotations] == [item["label"] for item in items]
    for annotation, item in zip(annotations, items, strict=True):
        mask = found.annToMask(annotation)
        assert mask.shape == (answer["image"]["height"], answer["image"]["width"])
        if task == "segment":
            assert np.count_nonzero(mask) == annotation["area"] == item["area"]
        else:
            box, (x, y, width, height) = item["box"], annotation["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx([box[side] for side in SIDES])
            assert annotation["score"] == item["score"]


SIDES = ("xmin", "ymin", "xmax", "ymax")


@pytest.mark.parametrize("form", [[], ["--json"], ["--format", "jsonl"]])
async def test_an_interruption_keeps_what_was_done(
    rest: Rest, files: list[str], tmp_path: Path, form: list[str]
) -> None:
    """After Ctrl-C the results before it are printed, stderr has their number in one line, and the status is 130."""
    bad = str(tmp_path / "nothing.png")
    async with (
        open_site() as site,  # the third image never comes
        started("classify", files[0], bad, site.url("/never"), *form, "--url", url(rest)) as process,
    ):
        site.answers["/never"] = never
        assert process.stderr is not None
        assert b"nothing.png: cannot be read" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, error = await process.communicate()
    assert process.returncode == 130
    assert error == b"convmlp: interrupted; 2 of 3 images are done\n"
    assert out.count(b"grey 100") == 1
