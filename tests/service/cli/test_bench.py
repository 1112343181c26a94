from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.service.cli.convmlp_command import convmlp, started, url
from tests.service.frontend.grpc_server import open_rpc_at
from tests.service.frontend.rest_server import Rest, open_rest, picture

SHORT = ("--seconds", "0.6", "--warm-up", "0.1")


async def requests_of(rest: Rest, task: str) -> float:
    return await rest.count(
        f'convmlp_requests_total{{model="fake_{task}",outcome="ok",task="{task}",transport="rest"}}'
    )


async def test_a_table_shows_throughput_and_latency(rest: Rest) -> None:
    """There is a row per load, closed loops before open ones, and the exit status is 0."""
    ran = await convmlp("bench", "--url", url(rest), "--concurrency", "1,4", "--rate", "50", *SHORT)
    assert ran.status == 0
    rows = [line.split() for line in ran.lines]
    assert rows[0] == ["classify", "at", f"{url(rest)},", "1", "image"]
    assert [row[:2] for row in rows[2:4]] == [["1", "client"], ["4", "clients"]]
    assert rows[4][0] == "50/s"
    assert [row[-1] for row in rows[2:]] == ["-"] * 3
    assert all(float(figure) > 0 for row in rows[2:4] for figure in row[2:-1])


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
async def test_json_has_the_same_figures(rest: Rest, tmp_path: Path, task: str) -> None:
    """The requests are of the task and the images that were given, and no more are reported than the service counts."""
    files = [tmp_path / f"{grey}.png" for grey in (100, 110)]
    for file in files:
        file.write_bytes(picture(int(file.stem)))
    ran = await convmlp(
        "bench", *map(str, files), "--task", task, "--url", url(rest), "--concurrency", "2", *SHORT, "--json"
    )
    assert ran.status == 0
    report = json.loads(ran.out)
    assert (report["url"], report["task"], report["pictures"]) == (url(rest), task, 2)
    (measured,) = report["measured"]
    assert (measured["loop"], measured["concurrency"], measured["seconds"]) == ("closed", 2, 0.6)
    assert 0 < measured["requests"] < await requests_of(rest, task)
    assert measured["answers_per_second"] > 0
    assert (measured["refused"], measured["failed"], measured["unsent"]) == ({}, {}, 0)
    latency = measured["latency_ms"]
    assert list(latency) == ["mean", "p50", "p90", "p95", "p99"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_refusals_are_counted_apart_from_errors(scheme: str) -> None:
    """Refusals are counted by their code, the same over both transports, beside the answers."""
    async with (
        open_rest(rate_limit_per_s=0.1, rate_limit_burst=5) as rest,
        open_rpc_at(rest.worker.address, rest.settings) as rpc,
    ):
        port = rest.port if scheme == "http" else rpc.port
        flags = ("--concurrency", "2", "--seconds", "0.3", "--warm-up", "0", "--json")
        ran = await convmlp("bench", "--url", f"{scheme}://127.0.0.1:{port}", *flags)
    (measured,) = json.loads(ran.out)["measured"]
    assert list(measured["refused"]) == ["rate-limited"]
    assert measured["failed"] == {}
    assert measured["requests"] == 4 + measured["refused"]["rate-limited"]
    assert ran.status == 0


async def test_a_measurement_without_answers_has_no_latency() -> None:
    """Where nothing is answered, each latency of the table is `-`."""
    async with open_rest(rate_limit_per_s=0.01, rate_limit_burst=1) as rest:
        # The only request that the rate admits is the one before the measurement.
        flags = ("--url", url(rest), "--concurrency", "1", "--seconds", "0.3", "--warm-up", "0")
        ran = await convmlp("bench", *flags)
    assert ran.lines[-1].split()[3:9] == ["0.0", *["-"] * 5]
    assert "nan" not in ran.out.decode()


async def test_errors_are_counted_by_kind(rest: Rest, tmp_path: Path) -> None:
    """Errors are counted by their code, in the table as well, and affect no other request."""
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    good.write_bytes(picture())
    broken.write_bytes(b"not an image")
    loads = (str(good), str(broken), "--url", url(rest), "--concurrency", "2", *SHORT)
    (measured,) = json.loads((await convmlp("bench", *loads, "--json")).out)["measured"]
    assert list(measured["failed"]) == ["unsupported-format"]
    assert measured["requests"] > measured["failed"]["unsupported-format"] > 0
    ran = await convmlp("bench", *loads)
    assert ran.status == 0
    assert ran.lines[-1].endswith("failed (unsupported-format)")


@pytest.mark.parametrize(
    ("task", "flags", "loops"),
    [("classify", (), [1, 8, 32]), ("detect", ("--concurrency", "2"), [2]), ("segment", ("--concurrency", "2"), [2])],
)
async def test_a_grpc_url_is_called_over_grpc(
    rest: Rest, grpc_url: str, task: str, flags: tuple[str, ...], loops: list[int]
) -> None:
    """A `grpc://` URL sends nothing over REST. The default is three closed loops."""
    ran = await convmlp("bench", "--url", grpc_url, "--task", task, "--json", *SHORT, *flags)
    assert ran.status == 0
    measured = json.loads(ran.out)["measured"]
    assert [one["concurrency"] for one in measured] == loops
    assert all(one["answers_per_second"] > 0 and not one["failed"] for one in measured)
    assert await requests_of(rest, task) == 0


async def test_the_api_key_is_sent(tmp_path: Path) -> None:
    """Requests carry the API key; without it the first request's error is printed."""
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    async with open_rest(api_keys_file=keys) as rest:
        environment = {"CONVMLP_API_KEY": "a-key-that-is-long-enough"}
        flags = ("--url", url(rest), "--concurrency", "1", *SHORT)
        assert (await convmlp("bench", *flags, environment=environment)).status == 0
        ran = await convmlp("bench", "--url", url(rest), *SHORT)
        assert (ran.status, ran.out) == (1, b"")
        assert "unauthenticated" in ran.err


async def test_an_error_of_every_request_is_printed_once(rest: Rest) -> None:
    """If the first request fails, as with an unknown model, no load follows."""
    before = await requests_of(rest, "classify")
    ran = await convmlp("bench", "--url", url(rest), "--model", "unknown", *SHORT)
    assert (ran.status, ran.out) == (1, b"")
    assert "model-not-found" in ran.err
    assert await requests_of(rest, "classify") == before


async def test_no_service_is_an_error() -> None:
    """If nothing listens, the error is one line, and there is no table."""
    ran = await convmlp("bench", "--url", "http://127.0.0.1:9", *SHORT)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err == "convmlp: the first request to http://127.0.0.1:9 failed: cannot connect: connection refused\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--concurrency", "0"), "outside 0 < N"),
        (("--concurrency", "1.5"), "expects whole numbers"),
        (("--rate", "fast"), "not a list of numbers"),
        (("--url", "ftp://here"), "not the URL of a service"),
    ],
)
async def test_wrong_flags_are_refused(flags: tuple[str, str], message: str) -> None:
    """Flags are checked before anything is sent, and the message names the flag."""
    ran = await convmlp("bench", *flags)
    assert ran.status == 2
    assert message in " ".join(ran.err.replace("│", " ").split())


@pytest.mark.parametrize("flags", [("--concurrency", "2,4"), ("--rate", "20")])
async def test_an_interruption_prints_what_was_measured(rest: Rest, flags: tuple[str, ...]) -> None:
    """After Ctrl-C the table has the measurement that was cut short, at the rate until then; the status is 130."""
    measured = ("--seconds", "600", "--warm-up", "0", *flags)
    async with started("bench", "--url", url(rest), "--json", *measured) as process:
        async with asyncio.timeout(60):
            while await requests_of(rest, "classify") < 20:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = await process.communicate()
    assert process.returncode == 130
    assert error == b"convmlp: interrupted; the last of 1 measurements is not complete\n"
    (figures,) = json.loads(out)["measured"]
    assert 0 < figures["seconds"] < 600
    assert figures["requests"] > 5
    assert figures["answers_per_second"] > 1
