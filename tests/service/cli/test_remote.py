from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import PIL.Image
import pytest

from tests.service.cli.convmlp_command import convmlp, started, url
from tests.service.frontend.rest_server import Rest, open_rest, picture


async def body(rest: Rest, path: str, files: list[str], accept: str = "application/json") -> bytes:
    """The service's own answer to these files in one request."""
    parts = [("image", file.read_bytes()) for file in map(Path, files)]
    response = await rest.http.post(path, files=parts, headers={"Accept": accept})
    assert response.status_code == 200
    return response.content


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("classify --top-k 2 --model fake_classify", "/classify?top_k=2&model=fake_classify"),
        ("detect", "/detect"),
        ("detect --score-threshold 0.7 --no-masks", "/detect?score_threshold=0.7&masks=false"),
        ("detect --max-detections 1 --mask-format polygon", "/detect?max_detections=1&mask_format=polygon"),
        ("segment --masks --mask-format png", "/segment?masks=true&mask_format=png"),
        ("segment --confidence-map --no-masks", "/segment?confidence_map=true&masks=false"),
        ("analyze --tasks classify,segment --top-k 2", "/analyze?tasks=classify,segment&top_k=2"),
        ("analyze --models fake_detect --mask-format png", "/analyze?models=fake_detect&mask_format=png"),
    ],
)
async def test_json_is_the_rest_answer(rest: Rest, files: list[str], arguments: str, path: str) -> None:
    """`--json` prints the REST answer byte for byte; each flag sets the query parameter of its name."""
    ran = await convmlp(*arguments.split(), files[0], "--json", "--url", url(rest))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == await body(rest, path, files[:1]) + b"\n"


async def test_several_images_are_one_document_in_their_order(rest: Rest, files: list[str]) -> None:
    """Images are sent one per request, several at once; the document equals that of one request for all."""
    ran = await convmlp("classify", *files, "--json", "--url", url(rest))
    assert ran.status == 0
    assert ran.out == await body(rest, "/classify", files) + b"\n"


async def test_an_environment_variable_sets_the_url(rest: Rest, files: list[str]) -> None:
    """CONVMLP_URL replaces --url."""
    ran = await convmlp("classify", files[0], "--json", environment={"CONVMLP_URL": url(rest)})
    assert json.loads(ran.out)["model"] == "fake_classify"


async def test_tables_are_readable_in_a_pipe(rest: Rest, files: list[str]) -> None:
    """Without a terminal, a table is plain text, one line per row, under a line with the image's name."""
    ran = await convmlp("classify", files[0], "--url", url(rest))
    assert ran.status == 0
    assert ran.lines[0].split() == [files[0], "62", "x", "60", "fake_classify"]
    assert ran.lines[1].split() == ["label", "score"]
    assert ran.lines[2].split() == ["grey", "100", "0.5000"]
    assert len(ran.lines) == 7
    assert all(ran.out.decode().replace("\n", "").isprintable() for line in ran.lines)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("detect", ["cat", "0.9000", "0.0", "0.0", "31.0", "30.0"]),
        ("segment", ["background", "1860", "50.0", "0.9000"]),
    ],
)
async def test_tables_have_the_columns_of_their_task(rest: Rest, files: list[str], task: str, row: list[str]) -> None:
    """Detections have boxes in pixels; segments have areas in pixels and as a percentage of the image."""
    ran = await convmlp(task, files[0], "--url", url(rest))
    assert row in [line.split() for line in ran.lines]


async def test_a_bad_image_affects_no_other_image(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """The others have their results in their places; stderr has the error of each that failed; the exit status is 1."""
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"not an image")
    ran = await convmlp("classify", files[0], str(broken), str(missing), files[1], "--json", "--url", url(rest))
    assert ran.status == 1
    results = json.loads(ran.out)["results"]
    assert [row["labels"][0]["index"] if "labels" in row else row["error"]["status"] for row in results] == [
        *(100, 415, 400, 101)
    ]
    assert len(ran.err.splitlines()) == 2
    assert f"{broken}: " in ran.err
    assert f"{missing}: cannot be read: No such file or directory" in ran.err


async def test_a_single_bad_image_has_no_result(rest: Rest, tmp_path: Path) -> None:
    """stdout is empty, stderr has the service's message, the exit status is 1."""
    empty = tmp_path / "empty.png"
    empty.touch()
    ran = await convmlp("detect", str(empty), "--json", "--url", url(rest))
    assert (ran.status, ran.out) == (1, b"")
    assert "the image is empty" in ran.err


async def test_stdin_is_an_image(rest: Rest) -> None:
    """`-` reads an image from stdin."""
    ran = await convmlp("classify", "-", "--url", url(rest), stdin=picture(77))
    assert ran.lines[0].startswith("stdin  80 x 60")
    assert ran.lines[2].startswith("grey 77")


@pytest.mark.parametrize(("suffix", "media_type"), [(".jpeg", "jpeg"), (".WebP", "webp")])
async def test_save_writes_the_services_drawing(
    rest: Rest, files: list[str], tmp_path: Path, suffix: str, media_type: str
) -> None:
    """`--save` writes the drawing that the service answers, in the format of the file's suffix."""
    target = tmp_path / f"drawn{suffix}"
    ran = await convmlp("detect", files[0], "--save", str(target), "--url", url(rest))
    assert (ran.status, ran.err) == (0, "")
    assert target.read_bytes() == await body(rest, "/detect", files[:1], f"image/{media_type}")


async def test_save_writes_several_drawings_into_a_folder(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """Each drawing has its image's name; the folder is created if necessary."""
    ran = await convmlp("segment", *files, "--save", f"{tmp_path}/new/drawn/", "--url", url(rest))
    assert ran.status == 0
    for file in files:
        drawn = tmp_path / "new/drawn" / Path(file).name
        assert drawn.read_bytes() == await body(rest, "/segment", [file], "image/png")


@pytest.mark.parametrize("view", ["labelmap", "colors", "confidence"])
async def test_save_writes_a_view(rest: Rest, files: list[str], tmp_path: Path, view: str) -> None:
    """`--view` writes the PNG that the service answers, of all classes."""
    target = tmp_path / "view.png"
    flags = ["--classes", "cat", "--view", view, "--save", str(target)]
    ran = await convmlp("segment", files[0], *flags, "--url", url(rest))
    assert (ran.status, ran.err) == (0, "")
    with (
        PIL.Image.open(target) as saved,
        PIL.Image.open(BytesIO(await body(rest, f"/segment?view={view}", files[:1]))) as own,
    ):
        assert (saved.mode, saved.convert("RGB").tobytes()) == (own.mode, own.convert("RGB").tobytes())
        assert saved.tobytes() == own.tobytes()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--view", "heat", "--save", "new.png"], "--view heat is not one of labelmap, colors, confidence"),
        (["--view", "confidence"], "name a .png file, or a folder, with --save"),
        (["--view", "labelmap", "--save", "new.jpg"], "name a .png file, or a folder, with --save"),
    ],
)
async def test_a_view_is_a_png(files: list[str], flags: list[str], reason: str) -> None:
    """Another view, or another kind of file, is a usage error."""
    ran = await convmlp("segment", files[0], *flags)
    assert ran.status == 2
    assert reason in " ".join(ran.err.replace("│", " ").split())


async def test_drawings_do_not_depend_on_the_mask_format(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """`--mask-format` is for `--json`; only a drawing without masks differs."""
    drawn = []
    for flags in ([], ["--mask-format", "polygon"], ["--mask-format", "none"], ["--no-masks"]):
        target = tmp_path / "drawn.png"
        ran = await convmlp("segment", files[0], *flags, "--save", str(target), "--url", url(rest))
        assert (ran.status, ran.err) == (0, "")
        drawn.append(target.read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] == drawn[3]


async def test_an_error_of_every_image_is_printed_once(rest: Rest, files: list[str]) -> None:
    """The service's message about an unknown model is printed once, whatever the number of images."""
    ran = await convmlp("classify", *files, "--model", "unknown", "--url", url(rest))
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err == "convmlp: there is no model 'unknown'; served: fake_classify, fake_detect, fake_segment\n"


async def test_a_busy_service_is_retried(files: list[str]) -> None:
    """After a refusal with Retry-After the command waits and retries."""
    async with open_rest(max_in_flight=1) as rest:
        rest.worker.runner.unblocked.clear()
        ahead = asyncio.create_task(rest.http.post("/classify", content=picture()))
        await rest.until("convmlp_in_flight_requests", 1)
        async with started("classify", files[0], "--json", "--url", url(rest)) as process:
            assert process.stderr is not None
            assert b"trying again" in await process.stderr.readline()
            rest.worker.runner.unblocked.set()
            assert (await ahead).status_code == 200
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert out == await body(rest, "/classify", files[:1]) + b"\n"


async def test_no_retry_exceeds_the_deadline(files: list[str]) -> None:
    """If Retry-After ends after --timeout-ms, the refusal is the error."""
    async with open_rest(rate_limit_per_s=0.01, rate_limit_burst=1) as rest:
        assert (await rest.http.post("/classify", content=picture())).status_code == 200
        ran = await convmlp("classify", files[0], "--timeout-ms", "30000", "--url", url(rest))
    assert ran.status == 1
    assert "; try again in" in ran.err
    assert "trying again" not in ran.err


async def test_the_deadline_reaches_the_service(rest: Rest, files: list[str]) -> None:
    """--timeout-ms is the service's deadline too: the service reports that it passed."""
    rest.worker.runner.unblocked.clear()
    ran = await convmlp("classify", files[0], "--timeout-ms", "3000", "--url", url(rest))
    assert ran.status == 1
    assert "deadline" in ran.err
    assert await rest.count('convmlp_rejected_total{reason="deadline"}') == 1


async def test_no_service_is_an_error(files: list[str]) -> None:
    """If nothing listens, the error is one line, with what to do."""
    ran = await convmlp("classify", *files, "--json", "--url", "http://127.0.0.1:1")
    assert (ran.status, ran.out) == (1, b"")
    assert len(ran.err.splitlines()) == 1
    assert "cannot connect to http://127.0.0.1:1: " in ran.err
    assert "; start `convmlp serve`, set --url, or use --local" in ran.err


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<p>\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\ncontent-type: application/problem+json\r\ncontent-length: 2\r\n\r\n{}",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
)
async def test_another_server_is_an_error(files: list[str], answer: bytes) -> None:
    """If another program listens there, the error is one line, and stdout is empty."""
    async with answering(answer) as there:
        ran = await convmlp("classify", files[0], "--json", "--url", there)
    assert (ran.status, ran.out) == (1, b"")
    assert len(ran.err.splitlines()) == 1
    assert there in ran.err


async def test_a_service_that_starts_names_a_time(files: list[str]) -> None:
    """If it asks for a longer wait than the command takes, the error is its own, with that time."""
    problem = b'{"type":"/problems/unavailable","detail":"the worker is loading its models","status":503}'
    head = b"HTTP/1.1 503 Busy\r\nretry-after: 40\r\ncontent-type: application/problem+json\r\n"
    async with answering(head + b"content-length: %d\r\n\r\n%s" % (len(problem), problem)) as there:
        ran = await convmlp("classify", *files, "--url", there)
    assert (ran.status, ran.err) == (1, "convmlp: the worker is loading its models; try again in 40 s\n")


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The URL of a server that answers each request so."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_calling_a_service_imports_no_torch(rest: Rest, files: list[str]) -> None:
    """A command that calls a service does not import torch, and works where it is not installed."""
    script = (
        "import sys; from service.cli.app import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "detect", files[0], "--url", url(rest)), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"fake_detect" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", ["classify", "models", "analyze"])
async def test_a_result_that_cannot_be_printed_is_an_error(
    rest: Rest, files: list[str], name: str, unbuffered: str
) -> None:
    """A full disk behind stdout is one line on stderr and exit status 1, whether Python keeps the rest or not."""
    arguments = ["models", "list"] if name == "models" else [name, files[0], "--json", "--url", url(rest)]
    command = (sys.executable, "-m", "service.cli", *arguments)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123
        process = await asyncio.create_subprocess_exec(
            *command, stdout=full, stderr=asyncio.subprocess.PIPE, env=environment
        )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert error == b"convmlp: cannot print the result: No space left on device\n"
