from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.cli.convmlp_command import convmlp, url
from tests.service.frontend.grpc_server import open_rpc_at
from tests.service.frontend.rest_server import Rest, open_rest, picture

KEY = "a-key-that-is-long-enough"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "grey.png"
    path.write_bytes(picture(101))
    return str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        "classify --top-k 2 --model fake_classify",
        "detect --score-threshold 0.7",
        "detect --max-detections 1 --mask-format polygon",
        "segment --mask-format png",
        "segment --no-masks",
    ],
)
async def test_grpc_gives_the_same_json_as_rest(rest: Rest, grpc_url: str, file: str, arguments: str) -> None:
    """`--json` prints the same bytes over either transport."""
    over_rest = await convmlp(*arguments.split(), file, "--json", "--url", url(rest))
    over_grpc = await convmlp(*arguments.split(), file, "--json", "--url", grpc_url)
    assert (over_grpc.status, over_grpc.err) == (0, "")
    assert over_grpc.out == over_rest.out


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
async def test_grpc_gives_the_same_drawing_as_rest(
    rest: Rest, grpc_url: str, file: str, tmp_path: Path, task: str
) -> None:
    """`--save` writes the drawing that the REST API answers, which the gRPC API does not have."""
    ran = await convmlp(task, file, "--save", str(tmp_path / "drawn.png"), "--url", grpc_url)
    assert (ran.status, ran.err) == (0, "")
    response = await rest.http.post(f"/{task}", content=picture(101), headers={"Accept": "image/png"})
    assert (tmp_path / "drawn.png").read_bytes() == response.content


async def test_grpc_gives_the_same_errors_as_rest(rest: Rest, grpc_url: str, tmp_path: Path) -> None:
    """A bad image and an unknown model have the same message and exit status."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    for arguments in (
        ["classify", str(broken)],
        ["classify", str(broken), "--model", "unknown"],
        ["analyze", str(broken)],
    ):
        over_rest = await convmlp(*arguments, "--url", url(rest))
        over_grpc = await convmlp(*arguments, "--url", grpc_url)
        assert over_rest.status == 1
        assert (over_grpc.status, over_grpc.err) == (over_rest.status, over_rest.err)


async def test_no_service_at_a_grpc_address_is_an_error(file: str) -> None:
    """If nothing listens, the error is one line, as for REST."""
    ran = await convmlp("classify", file, file, "--url", "grpc://127.0.0.1:1")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, b"", 1)
    assert "grpc://127.0.0.1:1" in ran.err
    assert "start `convmlp serve`" in ran.err


@pytest.mark.parametrize("form", ["flag", "variable"])
async def test_the_api_key_is_sent(file: str, tmp_path: Path, form: str) -> None:
    """`--api-key` and CONVMLP_API_KEY set the key, over REST and gRPC."""
    keys = tmp_path / "keys"
    keys.write_text(f"tester {KEY}\n")
    given = ["--api-key", KEY] if form == "flag" else []
    environment = {"CONVMLP_API_KEY": KEY} if form == "variable" else None
    async with open_rest(api_keys_file=keys) as rest, open_rpc_at(rest.worker.address, rest.settings) as rpc:
        for address in (url(rest), f"grpc://127.0.0.1:{rpc.port}"):
            ran = await convmlp("classify", file, "--url", address, *given, environment=environment)
            assert (ran.status, ran.err) == (0, "")


async def test_a_missing_key_is_one_error(file: str, tmp_path: Path) -> None:
    """The service's message about a missing or wrong key is printed once for all images, without the key."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    async with open_rest(api_keys_file=keys) as rest:
        for given in ([], ["--api-key", "another-key-that-is-wrong"]):
            ran = await convmlp("classify", file, file, file, "--url", url(rest), *given)
            assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, b"", 1)
            assert ran.err.endswith("; set CONVMLP_API_KEY, or give --api-key\n")
            assert "another-key" not in ran.err


async def test_a_key_that_cannot_be_sent_is_refused(file: str) -> None:
    """A key with a line break or non-ASCII characters is wrong usage, and is not printed."""
    for key in ("sécret", "secret\nsecret"):
        ran = await convmlp("classify", file, "--api-key", key)
        assert (ran.status, ran.out) == (2, b"")
        assert "printable ASCII" in ran.err
        assert "cret" not in ran.err.replace("--api-key", "")
