from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.cli.command import convmlp, started
from tests.service.frontend.rest_server import Rest, open_rest, picture


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    """A front-end with default settings."""
    async with open_rest() as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """More pictures than are asked about at a time, each of a grey level of its own."""
    paths = [tmp_path / f"{grey}.png" for grey in range(100, 112)]
    for path in paths:
        path.write_bytes(picture(int(path.stem), width=60 + int(path.stem) % 7))
    return [str(path) for path in paths]


def url(rest: Rest) -> str:
    return str(rest.http.base_url)


async def body(rest: Rest, path: str, files: list[str], accept: str = "application/json") -> bytes:
    """What the service itself answers to these files in one request."""
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
    ],
)
async def test_json_is_what_the_service_answers(rest: Rest, files: list[str], arguments: str, path: str) -> None:
    """`--json` prints the REST answer byte for byte, with each flag the query parameter that it is named after."""
    ran = await convmlp(*arguments.split(), files[0], "--json", "--url", url(rest))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == await body(rest, path, files[:1]) + b"\n"


async def test_several_images_are_one_document_in_their_order(rest: Rest, files: list[str]) -> None:
    """Many images, though asked about one by one and several at a time, give what one request for all would."""
    ran = await convmlp("classify", *files, "--json", "--url", url(rest))
    assert ran.status == 0
    assert ran.out == await body(rest, "/classify", files) + b"\n"


async def test_the_service_is_found_by_its_environment_variable(rest: Rest, files: list[str]) -> None:
    """CONVMLP_URL stands for --url."""
    ran = await convmlp("classify", files[0], "--json", environment={"CONVMLP_URL": url(rest)})
    assert json.loads(ran.out)["model"] == "fake_classify"


async def test_tables_are_readable_in_a_pipe(rest: Rest, files: list[str]) -> None:
    """Without a terminal a table is plain text, one row a line, under a line that names the picture."""
    ran = await convmlp("classify", *files[:2], "--url", url(rest))
    assert ran.status == 0
    assert ran.lines[0].split() == [files[0], "62", "x", "60", "fake_classify"]
    assert ran.lines[1].split() == ["label", "score"]
    assert ran.lines[2].split() == ["grey", "100", "0.5000"]
    assert ran.lines[7].split()[0] == files[1]
    assert all(ran.out.decode().replace("\n", "").isprintable() for line in ran.lines)


@pytest.mark.parametrize(
    ("task", "row"),
    [("detect", ["cat", "0.9000", "0.0", "0.0", "31.0", "30.0"]), ("segment", ["background", "1860", "50.0%"])],
)
async def test_tables_have_the_figures_of_their_task(rest: Rest, files: list[str], task: str, row: list[str]) -> None:
    """Boxes in pixels for detections; area and share of the picture for segments."""
    ran = await convmlp(task, files[0], "--url", url(rest))
    assert row in [line.split() for line in ran.lines]


async def test_a_bad_image_costs_only_itself(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """The others are answered in their places; stderr says which failed and why, and so does the exit status."""
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"no picture at all")
    ran = await convmlp("classify", files[0], str(broken), str(missing), files[1], "--json", "--url", url(rest))
    assert ran.status == 1
    results = json.loads(ran.out)["results"]
    assert [row["labels"][0]["index"] if "labels" in row else row["error"]["status"] for row in results] == [
        *(100, 415, 400, 101)
    ]
    assert len(ran.err.splitlines()) == 2
    assert f"{broken}: " in ran.err
    assert f"{missing}: cannot be read: No such file or directory" in ran.err


async def test_a_single_bad_image_has_no_answer(rest: Rest, tmp_path: Path) -> None:
    """Nothing on stdout that could be taken for an answer, the service's words on stderr, exit status 1."""
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
    """`--save` writes the picture that the service draws, in the format of the file's name."""
    target = tmp_path / f"drawn{suffix}"
    ran = await convmlp("detect", files[0], "--save", str(target), "--url", url(rest))
    assert (ran.status, ran.err) == (0, "")
    assert target.read_bytes() == await body(rest, "/detect", files[:1], f"image/{media_type}")


async def test_save_draws_several_into_a_folder(rest: Rest, files: list[str], tmp_path: Path) -> None:
    """Each picture is drawn under its own name into a folder, which is made if need be."""
    ran = await convmlp("segment", *files, "--save", f"{tmp_path}/new/drawn/", "--url", url(rest))
    assert ran.status == 0
    for file in files:
        drawn = tmp_path / "new/drawn" / Path(file).name
        assert drawn.read_bytes() == await body(rest, "/segment", [file], "image/png")


async def test_what_is_drawn_does_not_depend_on_how_json_writes_masks(
    rest: Rest, files: list[str], tmp_path: Path
) -> None:
    """`--mask-format` is for `--json`; only without masks is a drawing another one."""
    drawn = []
    for flags in ([], ["--mask-format", "polygon"], ["--mask-format", "none"], ["--no-masks"]):
        target = tmp_path / "drawn.png"
        ran = await convmlp("segment", files[0], *flags, "--save", str(target), "--url", url(rest))
        assert (ran.status, ran.err) == (0, "")
        drawn.append(target.read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] == drawn[3]


async def test_what_fails_for_all_is_told_once(rest: Rest, files: list[str]) -> None:
    """A model that is not there is the service's word, once, whatever the number of images."""
    ran = await convmlp("classify", *files, "--model", "nobody", "--url", url(rest))
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err == "convmlp: there is no model 'nobody' here; served: fake_classify, fake_detect, fake_segment\n"


async def test_a_busy_service_is_asked_again(files: list[str]) -> None:
    """A refusal with Retry-After is not the end: the command waits as told and gets its answer."""
    async with open_rest(max_in_flight=1) as rest:
        rest.worker.runner.gate.clear()
        ahead = asyncio.create_task(rest.http.post("/classify", content=picture()))
        await rest.until("convmlp_in_flight_requests", 1)
        async with started("classify", files[0], "--json", "--url", url(rest)) as process:
            assert process.stderr is not None
            assert b"trying again" in await process.stderr.readline()
            rest.worker.runner.gate.set()
            assert (await ahead).status_code == 200
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert out == await body(rest, "/classify", files[:1]) + b"\n"


async def test_no_attempt_is_made_beyond_the_callers_time(files: list[str]) -> None:
    """Where Retry-After would end after --timeout-ms, the refusal is final."""
    async with open_rest(max_in_flight=1) as rest:
        rest.worker.runner.gate.clear()
        ahead = asyncio.create_task(rest.http.post("/classify", content=picture()))
        await rest.until("convmlp_in_flight_requests", 1)
        ran = await convmlp("classify", files[0], "--timeout-ms", "900", "--url", url(rest))
        rest.worker.runner.gate.set()
        await ahead
    assert ran.status == 1
    assert "try again later" in ran.err
    assert "trying again" not in ran.err


async def test_the_deadline_reaches_the_service(rest: Rest, files: list[str]) -> None:
    """--timeout-ms is the service's deadline too: it is the service that says that it passed."""
    rest.worker.runner.gate.clear()
    ran = await convmlp("classify", files[0], "--timeout-ms", "1500", "--url", url(rest))
    assert ran.status == 1
    assert "deadline" in ran.err
    assert await rest.count('convmlp_rejected_total{reason="deadline"}') == 1


async def test_nobody_there_is_told_in_words(files: list[str]) -> None:
    """Where nothing listens the command says so, and what to do, without a traceback."""
    ran = await convmlp("classify", *files, "--json", "--url", "http://127.0.0.1:1")
    assert (ran.status, ran.out) == (1, b"")
    assert len(ran.err.splitlines()) == 1
    assert "cannot connect to http://127.0.0.1:1: " in ran.err
    assert "; start `convmlp serve`, name another --url, or use --local" in ran.err


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
async def test_another_server_is_told_in_words(files: list[str], answer: bytes) -> None:
    """Whatever else listens there, one line says so and nothing is shown as an answer."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ran = await convmlp("classify", files[0], "--json", "--url", f"http://127.0.0.1:{port}")
    assert (ran.status, ran.out) == (1, b"")
    assert len(ran.err.splitlines()) == 1
    assert f"http://127.0.0.1:{port}" in ran.err


async def test_asking_a_service_imports_no_torch(rest: Rest, files: list[str]) -> None:
    """A command that asks a service needs neither torch's start-up time nor its installation."""
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
async def test_an_answer_that_cannot_be_printed_is_told(rest: Rest, files: list[str]) -> None:
    """A full disk behind stdout is told in words and by the exit status."""
    command = (sys.executable, "-m", "service.cli", "classify", files[0], "--url", url(rest))
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123
        process = await asyncio.create_subprocess_exec(*command, stdout=full, stderr=asyncio.subprocess.PIPE)
    _, error = await process.communicate()
    assert process.returncode == 1
    assert error == b"convmlp: the answer cannot be printed: No space left on device\n"
