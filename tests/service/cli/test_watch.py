"""`convmlp watch`: folders, cameras and videos, against a service whose device is a fake."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from model.types import Task
from service.cli.backends import open_client
from service.cli.console import print_error
from service.cli.inputs import ImageFile
from service.cli.sources.feed import Feed
from service.cli.sources.frame import Frame
from service.cli.watching import Watching
from tests.ports import closed_port, listen_beside
from tests.service.cli.convmlp_command import convmlp, started, url
from tests.service.cli.rtsp_camera import open_camera
from tests.service.frontend.picture_site import Answer, open_site
from tests.service.frontend.rest_server import Rest, picture
from tests.waiting import PATIENCE_S, until

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV, the extra `video`")
Process = asyncio.subprocess.Process


async def next_line(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return dict(json.loads(await process.stdout.readline()))


async def next_message(process: Process, words: str) -> str:
    """The next message on stderr that has these words."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while words not in (message := (await process.stderr.readline()).decode()):
            assert message, f"stderr ended without {words!r}"
    return message


async def ended(process: Process, sent: signal.Signals | None = None) -> tuple[list[dict[str, Any]], str, int]:
    """The rest of the lines, of stderr, and the exit status, perhaps after a signal."""
    if sent is not None:
        process.send_signal(sent)
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return [json.loads(line) for line in out.splitlines()], err.decode(), process.returncode


def size_of(path: Path) -> tuple[int, int]:
    with PIL.Image.open(path) as drawing:
        return drawing.size


def mjpeg(frames: int, *, closes: bool = True, pause: Callable[[int], Awaitable[None]] | None = None) -> Answer:
    """A camera's frames, each of the grey level of its number from 1 on."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        for number in range(1, frames + 1):
            if pause is not None:
                await pause(number)
            body = picture(number, form="PNG")
            writer.write(b"--frame\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(body), body))
            await writer.drain()
        if closes:
            writer.write(b"--frame--\r\n")

    return answer


@asynccontextmanager
async def receiver(statuses: list[int]) -> AsyncIterator[tuple[str, list[Any]]]:
    """A webhook that answers these statuses, the last one again and again; and what it was sent."""
    received: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                received.append(json.loads(await reader.readexactly(length)))
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                writer.write(b"HTTP/1.1 %d Status\r\nContent-Length: 0\r\n\r\n" % status)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?secret", received
    finally:
        server.close()


async def test_a_folder_that_fills(grpc_url: str, tmp_path: Path) -> None:
    """Each new picture has its line once it is complete, a replaced one again, a broken one its error; and the webhook
    gets each line. What is no file, or a link that leads nowhere, is left out. Ctrl-C ends it with a summary."""
    folder, drawings = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "old.png").write_bytes(picture(1))
    (folder / "notes.txt").write_bytes(b"no picture")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    async with (
        receiver([503, 200]) as (hook, received),
        started(
            *("watch", str(folder), "--task", "classify", "--top-k", "1", "--url", grpc_url),
            *("--save", str(drawings), "--webhook", hook),
        ) as process,
    ):
        await next_message(process, "watching")
        (folder / "folder.png").mkdir()
        (folder / "nowhere.png").symlink_to(tmp_path / "removed.png")
        data = picture(70, width=300, height=300)
        (folder / "other.png").write_bytes(picture(71))
        other = asyncio.create_task(next_line(process))
        with (folder / "new.png").open("wb", buffering=0) as file:
            written = 0
            while not other.done():  # a file that still grows is not read
                assert written < len(data)
                written += file.write(data[written : written + 1])
                await asyncio.sleep(0.02)
            file.write(data[written:])
        lines = [other.result(), await next_line(process)]
        (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then")
        lines.append(await next_line(process))
        (folder / "new.png").write_bytes(picture(72, width=90))
        lines.append(await next_line(process))
        await until(lambda: len(received) == 5)
        rest_of_lines, err, status = await ended(process, signal.SIGINT)
    assert [line["file"] for line in lines] == ["other.png", "new.png", "broken.png", "new.png"]
    levels = [line["result"]["labels"][0]["index"] for line in lines if "result" in line]
    assert (levels, [line["frame"] for line in lines]) == ([71, 70, 72], [1, 2, 3, 4])
    assert (lines[0]["task"], lines[0]["model"], lines[0]["dropped"]) == ("classify", "fake_classify", 0)
    assert lines[2]["error"]["status"] == 400
    assert received == [lines[0], *lines]
    assert (rest_of_lines, status) == ([], 130)
    assert "4 frames in" in err
    assert "3 answered" in err
    assert "1 with an error" in err
    assert "4 delivered, 0 not" in err
    assert "secret" not in err
    assert "Traceback" not in err
    names = sorted(path.name for path in drawings.iterdir())
    assert names == ["new-000002.jpg", "new-000004.jpg", "other-000001.jpg"]
    assert size_of(drawings / names[1]) == (90, 60)


async def test_a_camera_faster_than_the_service(rest: Rest, grpc_url: str) -> None:
    """While a frame is in progress the newest is kept and the others are dropped; the lines and the summary have their
    number. The command ends with its source."""

    async def pause(number: int) -> None:
        if number == 2:  # the first one is on the device
            await until(lambda: len(rest.worker.runner.batches) > before)

    before = len(rest.worker.runner.batches)
    rest.worker.runner.unblocked.clear()
    async with open_site() as site:
        site.answers["/video"] = mjpeg(20, pause=pause)
        address = site.url("/video")
        arguments = (
            "watch",
            address,
            "--task",
            "classify",
            "--url",
            grpc_url,
            "--in-flight",
            "1",
            "--timeout-ms",
            "60000",
        )
        async with started(*arguments) as process:
            await until(lambda: bool(site.readers))
            assert await site.readers[0].read() == b""  # the command has read all frames, and left
            rest.worker.runner.unblocked.set()
            lines, err, status = await ended(process)
    assert [(line["frame"], line["dropped"]) for line in lines] == [(1, 0), (20, 18)]
    assert [line["result"]["labels"][0]["index"] for line in lines] == [1, 20]
    assert status == 0
    assert "20 frames in" in err
    assert "18 dropped (90%)" in err


async def test_a_camera_that_is_lost(rest: Rest, grpc_url: str) -> None:
    """A camera that breaks off is opened again, as often as allowed; one that was never there ends the command."""
    batches = rest.worker.runner.batches

    async def pause(number: int) -> None:
        await until(lambda: len(batches) >= before + number)  # no frame comes while another is in progress

    async with open_site() as site:
        site.answers["/video"] = mjpeg(1, closes=False)
        async with started("watch", site.url("/video?secret"), "--url", grpc_url) as process:
            assert (await next_line(process))["frame"] == 1
            before = len(batches) - 1
            site.answers["/video"] = mjpeg(2, pause=pause)
            lines, err, status = await ended(process)
        site.answers["/video"] = mjpeg(1, closes=False)
        ran = await convmlp("watch", site.url("/video"), "--url", grpc_url, "--reconnects", "0")
        assert (ran.status, len(ran.lines)) == (1, 1)
        assert "the camera ended the connection" in ran.err
    assert [line["frame"] for line in lines] == [2, 3]
    assert "opening it again in 0.5 s" in err
    assert (status, "secret" in err) == (0, False)
    ran = await convmlp("watch", site.url("/video"), "--url", grpc_url)
    assert (ran.status, ran.out) == (1, b"")
    assert "cannot connect: connection refused" in ran.err


async def test_a_service_that_is_away(rest: Rest, tmp_path: Path) -> None:
    """Files wait for a service, and a camera's frames are dropped until it answers: the command goes on."""
    (tmp_path / "one.png").write_bytes(picture(5))
    stopping = asyncio.Event()

    async def pause(number: int) -> None:
        await asyncio.sleep(0.3 if number < 200 and not stopping.is_set() else 0)

    with closed_port() as port:
        async with open_site() as site:
            site.answers["/video"] = mjpeg(200, pause=pause)
            common = ("--task", "classify", "--url", f"http://127.0.0.1:{port}")
            async with (
                started("watch", str(tmp_path), "--existing", *common) as of_folder,
                started("watch", site.url("/video"), *common) as of_camera,
            ):
                away = await next_message(of_folder, "cannot connect")
                # `watch` has no --local.
                assert "; start `convmlp serve`, or set --url (files wait until" in away
                assert "(frames are dropped until" in await next_message(of_camera, "cannot connect")
                async with forwarded(port, rest.port):
                    assert (await next_line(of_folder))["file"] == "one.png"
                    assert (await next_line(of_camera))["frame"] > 1
                    for process in (of_folder, of_camera):
                        await next_message(process, "the service answers again")
                    _, err, status = await ended(of_folder, signal.SIGTERM)
                    assert (status, "0 dropped" in err) == (143, True)
                    stopping.set()
                    _, err, status = await ended(of_camera)
                    assert (status, "while the service did not answer" in err) == (0, True)


@asynccontextmanager
async def forwarded(port: int, to: int) -> AsyncIterator[None]:
    """Connections to `port`, which is closed until now, reach the one at `to`."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(copy(reader, their_writer), copy(their_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(connect, sock=listen_beside(port))
    try:
        yield
    finally:
        server.close()


async def test_an_error_of_every_frame_ends_the_command(rest: Rest, tmp_path: Path) -> None:
    """What the service refuses for all frames, or an address that is no service, is printed once; the status is 1."""
    (tmp_path / "one.png").write_bytes(picture(5))
    ran = await convmlp("watch", str(tmp_path), "--existing", "--model", "unknown", "--url", url(rest))
    assert (ran.status, ran.out) == (1, b"")
    assert "there is no model 'unknown'" in ran.err


def video(path: Path, frames: int, degrees: int = 0) -> None:
    """A video of five frames a second, each of its own grey level; shown rotated by `degrees`, anticlockwise."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(frames):
            pixels = np.full((120, 160, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="PyAV is installed")
async def test_without_pyav_the_extra_is_named(tmp_path: Path) -> None:
    """A video or an RTSP address needs the extra, and the message names it."""
    (tmp_path / "a.mp4").write_bytes(b"")
    for source in (str(tmp_path / "a.mp4"), "rtsp://me:secret@camera/live"):
        ran = await convmlp("watch", source)
        assert (ran.status, ran.out) == (1, b"")
        assert "needs PyAV, which is not installed; install this package's extra `video`" in ran.err
        assert "secret" not in ran.err


@needs_av
async def test_a_video(grpc_url: str, tmp_path: Path) -> None:
    """Each frame of a file has its line and its time in the video, however fast the service is; `--fps` takes some."""
    path = tmp_path / "a.mp4"
    video(path, 10)
    common = (str(path), "--task", "classify", "--url", grpc_url)
    ran = await convmlp("watch", *common)
    lines = [json.loads(line) for line in ran.lines]
    assert (ran.status, [line["position_s"] for line in lines]) == (0, [round(at / 5, 3) for at in range(10)])
    levels = [line["result"]["labels"][0]["index"] for line in lines]
    assert levels == pytest.approx([20 * number for number in range(10)], abs=6)
    assert "0 dropped" in ran.err
    ran = await convmlp("watch", *common, "--fps", "2.5")
    assert [json.loads(line)["frame"] for line in ran.lines] == [1, 3, 5, 7, 9]
    assert "5 beyond --fps" in ran.err


@needs_av
async def test_a_video_is_upright(grpc_url: str, tmp_path: Path) -> None:
    """A phone's video is rotated as it is shown."""
    path = tmp_path / "phone.mp4"
    video(path, 1, degrees=90)
    ran = await convmlp("watch", str(path), "--url", grpc_url, "--save", str(tmp_path / "drawn"))
    assert json.loads(ran.out)["result"]["image"] == {"width": 120, "height": 160}
    (drawn,) = (tmp_path / "drawn").iterdir()
    assert size_of(drawn) == (120, 160)


@needs_av
async def test_an_rtsp_camera(grpc_url: str) -> None:
    """A camera's frames are its latest ones, and the end of its stream is a loss; its password stands nowhere."""
    async with open_camera(frames=8) as camera:
        ran = await convmlp("watch", camera, "--task", "classify", "--url", grpc_url, "--reconnects", "0")
    lines = [json.loads(line) for line in ran.lines]
    assert lines[-1]["frame"] == 8
    assert len(lines) + lines[-1]["dropped"] == 8
    levels = [line["result"]["labels"][0]["index"] for line in lines]
    assert levels == pytest.approx([20 * line["frame"] for line in lines], abs=6)
    assert (ran.status, "the stream ended" in ran.err, "secret" in ran.err) == (1, True, False)


@needs_av
async def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    """It is named, and the status is 1."""
    path = tmp_path / "notes.txt"
    path.write_text("no video")
    ran = await convmlp("watch", str(path))
    assert (ran.status, ran.out) == (1, b"")
    assert "notes.txt: invalid data" in ran.err


async def test_a_file_that_cannot_be_read_has_its_line(rest: Rest, capsys: pytest.CaptureFixture[str]) -> None:
    """Its line has the error, as that of a file which the service refuses; those after it are predicted."""

    class Files:
        is_live, resumes = False, True

        async def frames(self) -> AsyncGenerator[Frame, None]:
            for name, read in (("lost.png", ImageFile("/nothing/lost.png").read), ("good.png", partial(picture, 70))):
                yield Frame(read, 0.0, fields={"file": name})

    client = open_client(url(rest), None)
    try:
        await Watching(Task.CLASSIFY, Feed(Files(), None, 0, print_error), None, None).run(client, {}, 1)
    finally:
        await client.aclose()
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert (first["file"], first["error"]["detail"]) == ("lost.png", "cannot be read: No such file or directory")
    assert (second["file"], second["frame"], second["model"]) == ("good.png", 2, "fake_classify")
