"""`convmlp doctor` on this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from service.cli.doctor import run_doctor
from service.settings import Settings


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """State and text by the check's name."""
    _, *rows = capsys.readouterr().out.splitlines()
    split = [[cell for cell in row.split("  ") if cell.strip()] for row in rows]
    return {name.strip(): (state.strip(), found.strip()) for name, state, found in split}


def test_a_machine_that_can_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is in the way the status is 0, and every check has its line; a configured precision is named."""
    settings = Settings(
        http_port=0,
        grpc_port=0,
        worker_metrics_port=0,
        state_dir=tmp_path,
        precision=("auto", "convmlp_pets_heads=fp32"),
    )
    assert run_doctor(settings) == 0
    found = lines(capsys)
    assert {"software", "processor", "memory", "torch", "GPU", "resize", "http-port", "extras"} <= found.keys()
    assert f"{len(os.sched_getaffinity(0))} usable cores" in found["processor"][1]
    assert "fp32, as configured" in found["model convmlp_pets_heads"][1]
    assert "the next start measures" in found["model convmlp_pets_breed"][1]
    assert found["state folder"] == ("ok", str(tmp_path))


def test_what_is_in_the_way_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device and a model that are not there are problems, with the status 1; a port in use is a note."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(device="cuda", models=("absent",), http_port=port, state_dir=tmp_path / "file" / "state")
        (tmp_path / "file").write_text("not a folder", encoding="ascii")
        assert run_doctor(settings) == 1
    found = lines(capsys)
    assert found["GPU"] == ("problem", "none, and --device is cuda; use --device cpu or auto")
    assert found["model absent"][0] == "problem"
    assert "convmlp_pets_breed" in found["model absent"][1]
    assert found["http-port"][0] == "note"
    assert "Not a directory" in found["state folder"][1]
    assert found["state folder"][0] == "note"


def test_what_serve_refuses_is_a_problem_and_what_it_takes_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve` ends without its certificates. Without its folder of models it serves the embedded ones."""
    absent = tmp_path / "absent"
    free = Settings(http_port=0, grpc_port=0, worker_metrics_port=0, state_dir=tmp_path, models_dir=absent)
    assert run_doctor(free) == 0
    found = lines(capsys)
    assert (found["models"][0], found["model convmlp_pets_breed"][0]) == ("note", "ok")
    assert run_doctor(free.model_copy(update={"http_tls_certificate": absent, "http_tls_key": absent})) == 1
    found = lines(capsys)
    assert found["http TLS"] == ("problem", f"{absent}: No such file or directory; expected a PEM file")
    assert "grpc TLS" not in found
