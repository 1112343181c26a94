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
from tests.model.tiny_models import tiny_checkpoint
from tests.model.zoo.scripted_server import ScriptedReply, Server, scripted_server
from tests.service.cli.convmlp_command import started

NAME = "convmlp_s_cifar10"


@pytest.fixture(scope="module")
def published() -> bytes:
    """A checkpoint as the authors publish it, with all weights 0."""
    entry = CATALOGUE[NAME]
    tensors = build_network(entry.architecture, len(entry.labels)).state_dict()
    file = io.BytesIO()
    torch.save({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, file)
    return file.getvalue()


@pytest.fixture
def server(published: bytes) -> Iterator[Server]:
    with scripted_server(published) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "models"


def pull(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", "pull", NAME, *arguments], env={"CONVMLP_MODELS_DIR": str(store)})


def content(store: Path) -> list[str]:
    """The names in the store, without the file of hashes and its lock."""
    return sorted(path.name for path in store.iterdir() if not path.name.startswith("hashes.json"))


def test_a_published_model_is_downloaded_and_converted(store: Path, server: Server) -> None:
    """The command prints the model. A second pull sends no request."""
    ran = pull(store, "--url", server.url)
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == f"{NAME}: classify, classifier convmlp s, 10 labels, 34.1 MB -> {store / NAME}\n"
    assert read_bundle(store / NAME).config.source == CATALOGUE[NAME].source
    again = pull(store, "--url", server.url)
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout == f"{NAME} exists: {store / NAME}; --force downloads it again\n"
    assert len(server.requests) == 1


def test_without_a_terminal_progress_is_a_few_lines(store: Path, server: Server) -> None:
    """A log of a build has at most ten lines of progress."""
    ran = pull(store, "--url", server.url)
    assert ran.stderr.splitlines()[-1] == f"convmlp: {NAME}.pth: 100 % of 34.1 MB"
    assert 1 <= len(ran.stderr.splitlines()) <= 10


def test_a_mirror_has_the_authors_paths(tmp_path: Path, store: Path, published: bytes) -> None:
    """Below --mirror, each file has the path that it has in the authors' folder."""
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / CATALOGUE[NAME].path).write_bytes(published)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Log nothing."""

    handler = partial(Quiet, directory=str(tmp_path / "copies"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as mirror:
        thread = threading.Thread(target=mirror.serve_forever, args=(0.01,))
        thread.start()
        ran = pull(store, "--mirror", f"http://127.0.0.1:{mirror.server_port}/")
        mirror.shutdown()
        thread.join()
    assert ran.exit_code == 0, ran.stderr
    assert content(store) == [NAME]


def test_keep_leaves_the_checkpoint(store: Path, server: Server, published: bytes) -> None:
    """--keep leaves the checkpoint beside the model; without it only the model stays."""
    assert pull(store, "--url", server.url, "--keep").exit_code == 0
    assert content(store) == [NAME, f"{NAME}.pth"]
    assert (store / f"{NAME}.pth").read_bytes() == published
    assert pull(store, "--url", server.url, "--force").exit_code == 0
    assert content(store) == [NAME]


def test_an_expected_hash_is_checked(store: Path, server: Server, published: bytes) -> None:
    """A file with another hash than --sha256 does not become a model."""
    ran = pull(store, "--url", server.url, "--sha256", "0" * 64)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "has SHA-256" in ran.stderr
    assert NAME not in content(store)
    assert pull(store, "--url", server.url, "--sha256", hashlib.sha256(published).hexdigest()).exit_code == 0


def test_the_hash_of_the_first_download_is_expected_from_then_on(store: Path, server: Server, published: bytes) -> None:
    """A file that changed at its source is refused, and the existing model stays."""
    assert pull(store, "--url", server.url).exit_code == 0
    before = read_bundle(store / NAME)
    server.default = ScriptedReply(content=published[:-1] + b"!", etag='"two"')
    ran = pull(store, "--url", server.url, "--force")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "at the first download" in ran.stderr
    assert read_bundle(store / NAME) == before


def test_a_wrong_file_is_neither_converted_nor_trusted(tmp_path: Path, store: Path, server: Server) -> None:
    """A file that is not this model is an error and is removed, and its hash is not expected later."""
    other = tiny_checkpoint(tmp_path, "classifier").read_bytes()
    server.replies += [
        ScriptedReply(content=other, etag='"other"'),
        ScriptedReply(content=b"no checkpoint", etag='"none"'),
    ]
    for why in (
        "has a classifier on convmlp of size custom and 5 classes; the published model is",
        "is not a checkpoint",
    ):
        ran = pull(store, "--url", server.url)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert why in ran.stderr
        assert content(store) == []
    assert pull(store, "--url", server.url).exit_code == 0


def test_a_damaged_model_is_downloaded_again(store: Path, server: Server) -> None:
    """A model with damaged weights does not count as existing."""
    assert pull(store, "--url", server.url).exit_code == 0
    with (store / NAME / WEIGHTS_FILE).open("ab") as file:
        file.write(b"!")
    ran = pull(store, "--url", server.url)
    assert ran.exit_code == 0
    assert "it is downloaded again" in ran.stderr
    assert read_bundle(store / NAME)


async def test_a_killed_pull_resumes(store: Path, server: Server, published: bytes) -> None:
    """A process killed during the download leaves a partial file and no model; the next one requests only the rest."""
    half = len(published) // 2
    server.replies.append(ScriptedReply(stall_after=half))
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
def test_wrong_usage_is_refused_before_any_request(store: Path, arguments: list[str], status: int, why: str) -> None:
    """The error message does not wait for the network."""
    ran = pull(store, *arguments)
    assert (ran.exit_code, ran.stdout) == (status, "")
    assert why in ran.stderr
    assert not store.exists() or NAME not in content(store)


def test_an_unknown_name_is_an_error(store: Path) -> None:
    """The message lists the published models."""
    ran = CliRunner().invoke(app, ["models", "pull", "convmlp_xl", "--models-dir", str(store)])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "no model 'convmlp_xl'; known: convmlp_s_imagenet" in ran.stderr


def test_a_terminal_has_a_progress_bar(store: Path, server: Server) -> None:
    """The bar has the file's name, the bytes done and the total."""
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
    except OSError:  # Linux: the other end is closed
        return b""


def test_a_page_instead_of_the_file_is_explained(store: Path) -> None:
    """Hosts of large files may answer with a page for people: the error has what to do by hand."""
    with scripted_server(b"<!DOCTYPE html><html><body>Google Drive cannot scan this file</body></html>") as server:
        result = pull(store, "--url", server.url)
    assert result.exit_code == 1
    assert "answered with a page" in result.stderr
    assert f"convmlp models import FILE --as {NAME}" in result.stderr
    assert content(store) == []
