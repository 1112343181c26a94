"""Results in the object store of moto's server, which answers as S3 does: `make test-clients`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.errors import ImageUndecodable
from service.batch.score import error_row
from service.batch.sinks import open_results
from service.errors import Overloaded
from tests.clients.installs import only_if_asked_for, python_environment
from tests.service.batch.pictures import has_exactly
from tests.service.batch.test_remote_results import KILLED
from tests.service.batch.test_sinks import job, labels

pytestmark = [only_if_asked_for, pytest.mark.timeout(1500)]

OUT = "s3://results/run/1"


@pytest.fixture
def url(credentials: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A server with the bucket `results`."""
    pytest.importorskip("pyarrow")
    python, log = python_environment("moto"), tmp_path / "moto.log"
    command = [str(python), "-u", "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env={**os.environ, **credentials, "PYTHONPATH": ""}, stderr=file) as process,
    ):
        try:
            while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
            bucket = urllib.request.Request(f"{found[1]}/results", method="PUT")
            urllib.request.urlopen(bucket).close()
            yield found[1]
        finally:
            process.terminate()


def rows_in(url: str) -> list[dict[str, Any]]:
    """All rows of the closed parts, in their order."""
    with open_results(OUT, job(), url, writer_s=0.5) as results:
        return [json.loads(line) for line in results.lines()]


def test_a_killed_run_goes_on_and_each_picture_has_one_row(url: str) -> None:
    """Uploads, listings, heads, ranges and removals are those of S3; a row whose error may pass is scored again."""
    assert subprocess.run([sys.executable, "-c", KILLED, OUT, url], check=False).returncode == -signal.SIGKILL
    with open_results(OUT, job(), url, writer_s=0.5) as results:
        assert has_exactly(results.done, "a")
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append([labels("a"), labels("b"), error_row("c", Overloaded("no memory"))])
        results.close_parts()
        results.save_manifest("listing")
    assert [row["id"] for row in rows_in(url)] == ["a", "b", "c"]
    with open_results(OUT, job(), url) as results:
        assert has_exactly(results.done, "a", "b")
        results.begin({"pets": "fp32"}, ["cpu"])
        results.append([error_row("c", ImageUndecodable("empty"))])
    assert [(row["id"], "error" in row) for row in rows_in(url)] == [("a", False), ("b", False), ("c", True)]
