"""`convmlp doctor` on this machine."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from service.cli.checks import State
from service.cli.doctor import run_doctor
from service.cli.security_checks import check_certificates, check_key_files
from service.frontend.core.tls import CertificateFiles
from service.settings import Settings
from service.wire.curve import make_key_file
from tests.service.cli.convmlp_command import convmlp


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


async def test_json_has_the_same_checks(tmp_path: Path) -> None:
    """--json prints the checks for programs; the help has the flag and this command's own exit statuses."""
    words = ["--http-port", "0", "--grpc-port", "0", "--worker-metrics-port", "0", "--state-dir", str(tmp_path)]
    ran = await convmlp("doctor", "--json", *words)
    assert ran.status == 0, ran.err
    checks = {check["name"]: check for check in json.loads(ran.out)["checks"]}
    assert checks["state folder"] == {"name": "state folder", "state": "ok", "found": str(tmp_path)}
    text = (await convmlp("doctor", "--help")).out.decode()
    assert text.startswith("usage: convmlp doctor [--json] [--FLAG VALUE …]")
    assert "1 there is a problem" in text
    assert "75" not in text.partition("Exit status")[2]


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
    """`serve` ends without its folder of models, and without its certificates."""
    absent = tmp_path / "absent"
    free = Settings(http_port=0, grpc_port=0, worker_metrics_port=0, state_dir=tmp_path)
    assert run_doctor(free.with_changes(models_dir=absent)) == 1
    found = lines(capsys)
    assert (found["models"][0], found["model convmlp_pets_breed"][0]) == ("problem", "ok")
    assert run_doctor(free.with_changes(http_tls_certificate=absent, http_tls_key=absent)) == 1
    found = lines(capsys)
    assert found["http TLS"] == ("problem", f"{absent}: No such file or directory; expected a PEM file")
    assert "grpc TLS" not in found


def written(folder: Path, authority: trustme.CA, days: int = 365, name: str = "localhost") -> CertificateFiles:
    """A certificate for `name` that ends in so many days, in files that only their owner reads."""
    issued = authority.issue_cert(name, not_after=datetime.now(UTC) + timedelta(days=days))
    folder.mkdir()
    files = CertificateFiles(folder / "chain.pem", folder / "key.pem", folder / "ca.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(files.certificate, append=True)
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    files.key.chmod(0o600)
    return files


def tls_checks(files: CertificateFiles, client_ca: Path | None = None) -> list[tuple[str, State, str]]:
    settings = Settings(grpc_tls_certificate=files.certificate, grpc_tls_key=files.key, grpc_tls_client_ca=client_ca)
    return [(check.name, check.state, check.found) for check in check_certificates(settings, "grpc")]


def test_certificates_are_checked_as_clients_do(tmp_path: Path) -> None:
    """Names and dates are shown; one that ends soon is a note; one that has ended is a problem."""
    authority = trustme.CA()
    ((name, state, text),) = tls_checks(written(tmp_path / "good", authority))
    assert (name, state) == ("grpc TLS", State.OK)
    assert "chain.pem, for localhost, until " in text
    ((_, state, text),) = tls_checks(written(tmp_path / "short", authority, days=3))
    assert (state, text.endswith("renew it")) == (State.NOTE, True)
    expired = written(tmp_path / "expired", authority, days=-1)
    ((_, state, text),) = tls_checks(expired)
    assert state == State.PROBLEM
    assert "no client accepts it: certificate has expired" in text
    ((_, state, text),) = tls_checks(replace(expired, key=tmp_path / "good/key.pem"))
    assert (state, "key values mismatch" in text) == (State.PROBLEM, True)


def test_a_client_authority_that_refuses_the_service_itself_is_noted(tmp_path: Path) -> None:
    """The service asks itself with its own certificate whether it is ready."""
    files = written(tmp_path / "own", trustme.CA())
    assert [check[:2] for check in tls_checks(files, files.client_ca)] == [
        ("grpc TLS", State.OK),
        ("grpc TLS clients", State.OK),
    ]
    other = written(tmp_path / "other", trustme.CA())
    *_, (name, state, text) = tls_checks(files, other.client_ca)
    assert (name, state) == ("grpc TLS clients", State.NOTE)
    assert "add its issuer" in text


def test_key_files_are_checked(tmp_path: Path) -> None:
    """A malformed file is a problem, with its line; one that every user can read is noted; neither shows a key."""
    keys, wire = tmp_path / "keys", tmp_path / "wire.key"
    key = "a" * 40
    keys.write_text(f"tester {key}\nshort\n", encoding="ascii")
    make_key_file(wire)
    settings = Settings(api_keys_file=keys, wire_key_file=wire)
    api, of_wire = check_key_files(settings)
    assert (api.state, of_wire.state) == (State.PROBLEM, State.OK)
    assert f"{keys}, line 2: a key has at least" in api.found
    keys.write_text(f"tester {key}\n", encoding="ascii")
    keys.chmod(0o644)
    wire.write_text("nothing", encoding="ascii")
    api, of_wire = check_key_files(settings)
    assert (api.state, of_wire.state) == (State.NOTE, State.PROBLEM)
    assert "chmod o-rwx" in api.found
    assert "expected a file of `convmlp wire-key`" in of_wire.found
    assert key not in api.found
