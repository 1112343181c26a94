"""What each part's help lists, and what a shell completes."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.cli.parts import SERVE_ONLY, SETTINGS_OF
from service.settings import Settings

ROOT = Path(__file__).parents[3]
MODULES = {"worker": "service.worker.main", "rest": "service.frontend.http_main", "grpc": "service.frontend.grpc_main"}


@cache
def attributes() -> dict[str, set[str]]:
    """What each module reads of a value named `settings`, or of a function's argument that is of type Settings."""
    found = {}
    for file in (ROOT / "service").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        reads = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2].strip("_") == "settings"
        }
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[module] = {name for read in reads for name in properties().get(read, {read})} & set(Settings.model_fields)
    return found


@cache
def properties() -> dict[str, set[str]]:
    """The settings that each property and method of Settings reads."""
    tree = ast.parse((ROOT / "service/settings.py").read_text(encoding="utf-8"))
    (owner,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    return {
        method.name: {node.attr for node in ast.walk(method) if isinstance(node, ast.Attribute)}
        for method in owner.body
        if isinstance(method, ast.FunctionDef)
    }


@cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("service", cache_dir=None)


@pytest.mark.parametrize("part", MODULES)
def test_the_help_of_a_part_lists_what_its_code_reads(part: str) -> None:
    """The settings of a part are those that a module which it imports reads; both wires' limits are in one module."""
    modules = {MODULES[part], *imports().find_upstream_modules(MODULES[part])}
    read = set().union(*(attributes().get(module, set()) for module in modules if module != "service.settings"))
    read -= {"max_image_mpx"} if part == "worker" else {"max_queue_mpx"}
    if part != "worker":  # the names of settings are put together in service/frontend/core/tls.py
        prefix = "http" if part == "rest" else "grpc"
        read |= {f"{prefix}_tls_{name}" for name in ("certificate", "key", "client_ca")}
    assert read == SETTINGS_OF[part]


def test_every_setting_is_of_a_part() -> None:
    """A setting that no single part lists is one of the supervisor's own."""
    parts = SETTINGS_OF["worker"] | SETTINGS_OF["rest"] | SETTINGS_OF["grpc"]
    assert set(Settings.model_fields) - parts == SERVE_ONLY
    assert SETTINGS_OF["serve"] == set(Settings.model_fields)


def test_flags_without_effect_are_named() -> None:
    """A part accepts the flags of the others, so that all may be started alike, and names those without effect."""
    ran = CliRunner().invoke(app, ["rest", "--device", "cpu", "--http-port=0", "--no-fast-decode"])
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[0].startswith("convmlp: --device: no effect; ")
    assert "--worker-address is required" in ran.stderr.splitlines()[1]


def completed(line: str) -> list[str]:
    """What bash completes the line's last word to."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_CONVMLP_COMPLETE": "complete_bash"}
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli"], env={**os.environ, **words}, capture_output=True, text=True, check=True
    )
    return ran.stdout.split()


def test_a_shell_completes_commands_flags_and_choices() -> None:
    """It completes the names of commands, the flags of a part, which are settings, and the values of one of few."""
    assert completed("convmlp cla") == ["classify"]
    assert completed("convmlp grpc --grpc-t") == ["--grpc-tls-certificate", "--grpc-tls-client-ca", "--grpc-tls-key"]
    assert completed("convmlp grpc --http-t") == []
    assert completed("convmlp worker --device cpu --log-format ") == ["console", "json"]
    assert completed("convmlp detect --max-d") == ["--max-detections"]
    assert completed("convmlp detect --format ") == ["table", "csv", "jsonl", "coco"]
    assert completed("convmlp detect --mask-format p") == ["png", "polygon"]
    assert completed("convmlp segment --view l") == ["labelmap"]


def test_the_script_for_a_shell_is_printed() -> None:
    """`--show-completion` prints what the shell that it is called from has to read."""
    command = f"{shlex.quote(sys.executable)} -m service.cli --show-completion; exit $?"
    script = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "complete -o default -F" in script.stdout
