from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.cli.command import convmlp
from tests.service.frontend.grpc_server import open_rpc_at
from tests.service.frontend.rest_server import Rest, open_rest, picture

SHORT = ("--seconds", "0.3", "--warm-up", "0.1")


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    """A front-end with default settings."""
    async with open_rest() as running:
        yield running


def url(rest: Rest) -> str:
    return str(rest.http.base_url)


async def requests_of(rest: Rest, task: str) -> float:
    return await rest.count(
        f'convmlp_requests_total{{model="fake_{task}",outcome="ok",task="{task}",transport="rest"}}'
    )


async def test_a_table_says_what_the_service_did(rest: Rest) -> None:
    """A row for each load, closed loops before open ones, with figures; the exit status says that all was well."""
    ran = await convmlp("bench", "--url", url(rest), "--concurrency", "1,4", "--rate", "50", *SHORT)
    assert ran.status == 0
    rows = [line.split() for line in ran.lines]
    assert rows[0][:3] == ["classify", "at", url(rest)]
    assert [row[:2] for row in rows[2:4]] == [["1", "clients"], ["4", "clients"]]
    assert rows[4][0] == "50/s"
    assert [row[-1] for row in rows[2:]] == ["-"] * 3
    assert all(float(figure) > 0 for row in rows[2:4] for figure in row[2:-1])


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
async def test_json_has_the_figures_of_the_requests_that_the_service_answered(
    rest: Rest, tmp_path: Path, task: str
) -> None:
    """No more answers are told than the service gave, of the task that was asked for and about the given pictures."""
    files = [tmp_path / f"{grey}.png" for grey in (100, 110)]
    for file in files:
        file.write_bytes(picture(int(file.stem)))
    ran = await convmlp(
        "bench", *map(str, files), "--task", task, "--url", url(rest), "--concurrency", "2", *SHORT, "--json"
    )
    assert ran.status == 0
    told = json.loads(ran.out)
    assert (told["url"], told["task"], told["pictures"]) == (url(rest), task, 2)
    (measured,) = told["measured"]
    assert (measured["loop"], measured["concurrency"], measured["seconds"]) == ("closed", 2, 0.3)
    assert 0 < measured["requests"] < await requests_of(rest, task)
    assert measured["answers_per_second"] > 0
    assert (measured["refused"], measured["failed"], measured["unsent"]) == ({}, {}, 0)
    latency = measured["latency_ms"]
    assert list(latency) == ["mean", "p50", "p90", "p95", "p99"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_refusals_are_told_apart_from_errors(scheme: str) -> None:
    """What the service refuses is counted by its code, the same over either transport, beside what it answered."""
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


async def test_errors_are_counted_by_kind(rest: Rest, tmp_path: Path) -> None:
    """What the service could not answer is named by the error's code, in the table as well, and costs nothing else."""
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    good.write_bytes(picture())
    broken.write_bytes(b"no picture at all")
    loads = (str(good), str(broken), "--url", url(rest), "--concurrency", "2", *SHORT)
    (measured,) = json.loads((await convmlp("bench", *loads, "--json")).out)["measured"]
    assert list(measured["failed"]) == ["unsupported-format"]
    assert measured["requests"] > measured["failed"]["unsupported-format"] > 0
    ran = await convmlp("bench", *loads)
    assert ran.status == 0
    assert ran.lines[-1].endswith("failed (unsupported-format)")


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
async def test_grpc_is_loaded_by_its_scheme(rest: Rest, task: str) -> None:
    """A `grpc://` URL is asked over gRPC, and nothing over REST; without a word a few closed loops are run."""
    async with open_rpc_at(rest.worker.address, rest.settings) as rpc:
        ran = await convmlp("bench", "--url", f"grpc://127.0.0.1:{rpc.port}", "--task", task, "--json", *SHORT)
    assert ran.status == 0
    measured = json.loads(ran.out)["measured"]
    assert [one["concurrency"] for one in measured] == [1, 8, 32]
    assert all(one["answers_per_second"] > 0 and not one["failed"] for one in measured)
    assert await requests_of(rest, task) == 0


async def test_the_api_key_is_sent(tmp_path: Path) -> None:
    """Where the service asks for a key, the load has it; without it the first request's error is told."""
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    async with open_rest(api_keys_file=keys) as rest:
        environment = {"CONVMLP_API_KEY": "a-key-that-is-long-enough"}
        assert (await convmlp("bench", "--url", url(rest), *SHORT, environment=environment)).status == 0
        ran = await convmlp("bench", "--url", url(rest), *SHORT)
        assert (ran.status, ran.out) == (1, b"")
        assert "unauthenticated" in ran.err


async def test_a_service_that_cannot_answer_is_not_loaded(rest: Rest) -> None:
    """What is wrong with every request is said once, from the first: here the model's name."""
    before = await requests_of(rest, "classify")
    ran = await convmlp("bench", "--url", url(rest), "--model", "nobody", *SHORT)
    assert (ran.status, ran.out) == (1, b"")
    assert "model-not-found" in ran.err
    assert await requests_of(rest, "classify") == before


async def test_nobody_there() -> None:
    """Where nothing listens there is one line about it, and no table."""
    ran = await convmlp("bench", "--url", "http://127.0.0.1:9", *SHORT)
    assert (ran.status, ran.out) == (1, b"")
    assert "no connection" in ran.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--concurrency", "0"), "above 0"),
        (("--concurrency", "1.5"), "whole clients"),
        (("--rate", "fast"), "not numbers"),
        (("--url", "ftp://here"), "not the URL of a service"),
    ],
)
async def test_nonsense_is_refused(flags: tuple[str, str], words: str) -> None:
    """Bounds hold before anything is sent, and the message names the flag."""
    ran = await convmlp("bench", *flags)
    assert ran.status == 2
    assert words in " ".join(ran.err.replace("│", " ").split())
