from __future__ import annotations

import asyncio
import hashlib
import http.server
import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from model.bundle import WEIGHTS_FILE, read_bundle
from model.net.network import build_network
from model.zoo.catalogue import CATALOGUE
from service.cli.app import app
from tests.model.zoo.checkpoints import tiny_checkpoint
from tests.model.zoo.server import Act, Server, serving
from tests.service.cli.command import started

NAME = "convmlp_s_cifar10"


@pytest.fixture(scope="module")
def published() -> bytes:
    """A file as the authors publish it, but for the weights, which are all 0."""
    entry = CATALOGUE[NAME]
    tensors = build_network(entry.architecture, len(entry.labels)).state_dict()
    file = io.BytesIO()
    torch.save({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, file)
    return file.getvalue()


@pytest.fixture
def server(published: bytes) -> Iterator[Server]:
    with serving(published) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "models"


def pull(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", "pull", NAME, *arguments], env={"CONVMLP_MODELS_DIR": str(store)})


def left(store: Path) -> list[str]:
    """What is in the store, but for the book of hashes and the empty files that processes lock."""
    return sorted(
        path.name for path in store.iterdir() if path.name != "hashes.json" and not path.name.endswith(".lock")
    )


def test_a_published_model_is_fetched_and_made(store: Path, server: Server) -> None:
    """Fetched, made, told; nothing else is left, and fetching it once more asks nobody."""
    ran = pull(store, "--url", server.url)
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == f"{NAME}: classify, classifier s, 10 labels, 34.1 MB -> {store / NAME}\n"
    assert read_bundle(store / NAME).config.source == CATALOGUE[NAME].source
    again = pull(store, "--url", server.url)
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout == f"{NAME} is there already: {store / NAME}; --force fetches it again\n"
    assert len(server.requests) == 1


def test_without_a_terminal_progress_is_a_few_lines(store: Path, server: Server) -> None:
    """A log of a build is not flooded: one line for each tenth."""
    ran = pull(store, "--url", server.url)
    assert ran.stderr.splitlines()[-1] == f"convmlp: {NAME}.pth: 100 % of 34.1 MB"
    assert 1 <= len(ran.stderr.splitlines()) <= 10


def test_a_mirror_has_the_authors_folders(tmp_path: Path, store: Path, published: bytes) -> None:
    """--mirror names a copy of the folder of checkpoints; each file is at its own path below it."""
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / CATALOGUE[NAME].path).write_bytes(published)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Silent."""

    handler = partial(Quiet, directory=str(tmp_path / "copies"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as mirror:
        thread = threading.Thread(target=mirror.serve_forever, args=(0.01,))
        thread.start()
        ran = pull(store, "--mirror", f"http://127.0.0.1:{mirror.server_port}/")
        mirror.shutdown()
        thread.join()
    assert ran.exit_code == 0, ran.stderr
    assert left(store) == [NAME]


def test_the_file_is_kept_if_asked_for(store: Path, server: Server, published: bytes) -> None:
    """--keep leaves the authors' file beside the model, else only the model stays."""
    assert pull(store, "--url", server.url, "--keep").exit_code == 0
    assert left(store) == [NAME, f"{NAME}.pth"]
    assert (store / f"{NAME}.pth").read_bytes() == published
    assert pull(store, "--url", server.url, "--force").exit_code == 0
    assert left(store) == [NAME]


def test_the_hash_is_checked_at_once_where_one_is_given(store: Path, server: Server, published: bytes) -> None:
    """A file of another hash never becomes a model; one of the right hash does."""
    ran = pull(store, "--url", server.url, "--sha256", "0" * 64)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "has SHA-256" in ran.stderr
    assert NAME not in left(store)
    assert pull(store, "--url", server.url, "--sha256", hashlib.sha256(published).hexdigest()).exit_code == 0


def test_the_hash_of_the_first_use_holds_ever_after(store: Path, server: Server, published: bytes) -> None:
    """A file that changed at its source is refused, and the model that is there stays."""
    assert pull(store, "--url", server.url).exit_code == 0
    before = read_bundle(store / NAME)
    server.then = Act(content=published[:-1] + b"!", etag='"two"')
    ran = pull(store, "--url", server.url, "--force")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "at the first download" in ran.stderr
    assert read_bundle(store / NAME) == before


def test_what_is_no_such_model_is_neither_made_nor_trusted(tmp_path: Path, store: Path, server: Server) -> None:
    """Another model at that place is told and removed, and does not stand in the way of the right one later."""
    other = tiny_checkpoint(tmp_path, "classifier").read_bytes()
    server.acts += [Act(content=other, etag='"other"'), Act(content=b"no checkpoint", etag='"none"')]
    for why in ("has a classifier of size custom and 5 classes; the published model is", "is not a checkpoint"):
        ran = pull(store, "--url", server.url)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert why in ran.stderr
        assert left(store) == []
    assert pull(store, "--url", server.url).exit_code == 0


def test_an_unsound_model_is_fetched_again(store: Path, server: Server) -> None:
    """A model whose weights were damaged is no reason to fetch nothing."""
    assert pull(store, "--url", server.url).exit_code == 0
    with (store / NAME / WEIGHTS_FILE).open("ab") as file:
        file.write(b"!")
    ran = pull(store, "--url", server.url)
    assert ran.exit_code == 0
    assert "it is fetched again" in ran.stderr
    assert read_bundle(store / NAME)


async def test_a_killed_pull_leaves_no_half_model_and_goes_on(store: Path, server: Server, published: bytes) -> None:
    """A process killed in the middle leaves only the part; the next one asks for the rest alone."""
    half = len(published) // 2
    server.acts.append(Act(stall_after=half))
    arguments = ("models", "pull", NAME, "--url", server.url, "--models-dir", str(store))
    async with started(*arguments) as process:
        part = store / f"{NAME}.pth.part"
        while not part.exists() or part.stat().st_size < half:
            await asyncio.sleep(0.02)
            assert process.returncode is None
        process.kill()
        await process.wait()
    assert not (store / NAME).exists()
    ran = await asyncio.to_thread(pull, store, "--url", server.url)
    assert ran.exit_code == 0, ran.stderr
    assert server.ranges == [None, f"bytes={half}-"]
    assert read_bundle(store / NAME)


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--url", "http://127.0.0.1:1/a", "--mirror", "http://127.0.0.1:1/"], 2, "--mirror"),
        (["--url", "ftp://somewhere/a"], 1, "is not an http or https URL"),
        (["--sha256", "abc"], 1, "is not a SHA-256"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_fetched(
    store: Path, arguments: list[str], status: int, why: str
) -> None:
    """In words, without waiting for a network."""
    ran = pull(store, *arguments)
    assert (ran.exit_code, ran.stdout) == (status, "")
    assert why in ran.stderr
    assert not store.exists() or NAME not in left(store)


def test_an_unknown_name_is_told_with_those_that_are_known(store: Path) -> None:
    """Only what the authors publish can be fetched."""
    ran = CliRunner().invoke(app, ["models", "pull", "convmlp_xl", "--models-dir", str(store)])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "no model 'convmlp_xl'; known: convmlp_s_imagenet" in ran.stderr


def test_a_terminal_gets_a_bar(store: Path, server: Server) -> None:
    """On a terminal the progress is drawn, with the file's name and what there is to come."""
    reader, terminal = pty.openpty()
    command = [sys.executable, "-m", "service.cli", "models", "pull", NAME, "--url", server.url]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "CONVMLP_MODELS_DIR": str(store)}
    with subprocess.Popen(command, stderr=terminal, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(terminal)
        drawn = b""
        while chunk := _read(reader):
            drawn += chunk
    os.close(reader)
    assert process.returncode == 0, drawn
    assert f"{NAME}.pth".encode() in drawn
    assert "━".encode() in drawn
    assert b"34.1/34.1 MB" in drawn


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux tells that nobody has the other end any more
        return b""
