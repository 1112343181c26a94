"""Where settings come from, and which source wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import EMBEDDED_MODELS, Settings, usable_memory

SHOW = """
import sys
from service.settings import Settings
print(Settings(_cli_parse_args=sys.argv[1:]).model_dump_json())
"""


def settings_of(folder: Path, *flags: str, **environment: str) -> dict[str, object]:
    """The settings of a fresh process in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    values: dict[str, object] = json.loads(done.stdout)
    return values


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """Each source overrides the next one, setting by setting."""
    (tmp_path / "convmlp.toml").write_text('http_port = 1\ngrpc_port = 1\nhost = "0.0.0.0"\n')
    found = settings_of(tmp_path, "--http-port", "3", CONVMLP_HTTP_PORT="2", CONVMLP_GRPC_PORT="2")
    assert found["http_port"] == 3
    assert found["grpc_port"] == 2
    assert found["host"] == "0.0.0.0"
    assert found["worker_metrics_port"] == Settings.model_fields["worker_metrics_port"].default


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    """The file or the default counts then, unless empty is a value of its own: no paths, no traces."""
    (tmp_path / "convmlp.toml").write_text('max_images = 3\nprotected_paths = "/docs"\napi_keys_file = "keys"\n')
    names = ("MAX_IMAGES", "MODELS", "API_KEYS_FILE", "MODEL_CONTROL", "PROTECTED_PATHS", "OTLP_ENDPOINT")
    found = settings_of(tmp_path, **{f"CONVMLP_{name}": "" for name in names})
    assert (found["max_images"], found["api_keys_file"], found["protected_paths"]) == (3, "keys", [])
    assert found["models"] == list(EMBEDDED_MODELS)
    assert (found["model_control"], found["otlp_endpoint"]) == (False, "")


def test_names_of_models_come_as_a_list_with_commas(tmp_path: Path) -> None:
    """`--models a,b` and CONVMLP_MODELS=a,b mean two models, in that order."""
    assert settings_of(tmp_path, "--models", "b,a")["models"] == ["b", "a"]
    assert settings_of(tmp_path, CONVMLP_MODELS="a, b")["models"] == ["a", "b"]


def test_addresses_of_workers_come_as_a_list_with_commas(tmp_path: Path) -> None:
    """`--worker-address a,b` and CONVMLP_WORKER_ADDRESS=a,b mean two workers; an empty value means none."""
    two = ["tcp://gpu-1:5555", "ipc:///run/convmlp/worker"]
    assert settings_of(tmp_path, "--worker-address", ", ".join(two))["worker_address"] == two
    assert settings_of(tmp_path, CONVMLP_WORKER_ADDRESS=",".join(two))["worker_address"] == two
    assert settings_of(tmp_path, CONVMLP_WORKER_ADDRESS="")["worker_address"] == []


def test_another_process_reads_the_same_settings(tmp_path: Path) -> None:
    """A child that reads `as_environment` has the same settings."""
    settings = Settings(models=("x", "y"), http_port=0, models_dir=tmp_path, worker_address="ipc://z")
    found = settings_of(tmp_path, **settings.as_environment())
    assert found == json.loads(settings.model_dump_json())


@pytest.mark.parametrize(
    "wrong",
    [
        {"http_port": 70000},
        {"models": ""},
        {"device": "gpu"},
        {"worker_address": "gpu-host:5555"},
        {"worker_address": "tcp://gpu-host"},
        {"worker_address": "tcp://gpu-host:65536"},
        {"no_such_setting": 1},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    """A value out of range, or an unknown name, is an error."""
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_usable_memory_is_the_containers(tmp_path: Path) -> None:
    """The cgroup's limit where there is one below the machine's memory."""
    limit = tmp_path / "memory.max"
    physical = usable_memory(limit)
    assert physical > 2**20
    for text, expected in (("max\n", physical), ("1048576\n", 2**20), (f"{2**60}\n", physical)):
        limit.write_text(text)
        assert usable_memory(limit) == expected


def test_the_memory_of_decoded_images_follows_from_the_machine() -> None:
    """Unless it is set: a third of what the process may use, at most 400 MB."""
    assert Settings(max_decoded_bytes=1000).decoded_bytes == 1000
    assert Settings().decoded_bytes == min(usable_memory() // 3, 400 * 10**6)
