"""The commands of the README, and of docs/, pasted into a fresh clone beside a running service.

The README's outputs and figures are true.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from model.zoo.catalogue import CATALOGUE
from service.settings import Settings
from tests.e2e.convmlp_process import RunningService, running_service
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

SERVES = re.compile(r"(?:CONVMLP_\w+=\S+ )?make serve\b")
"""The service runs already; `make` prints what it would run."""


def commands() -> list[str]:
    """Those of shells, without what is printed."""
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    return [*lines, *(command for command, _ in printed())]


def printed() -> list[tuple[str, str]]:
    """The commands with their outputs."""
    block = "".join(block for kind, block in BLOCKS if kind == "console")
    return re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)+)", block, re.MULTILINE)


def documented() -> list[str]:
    """The commands of docs/ that need a service and pictures, and nothing else: no model or store of a reader's own."""
    lines = [
        line.removeprefix("$ ")
        for page in sorted((ROOT / "docs").glob("*.md"))
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", "").splitlines()
    ]
    calls = [line for line in lines if line.startswith("convmlp ") or (line.startswith("curl") and ":8000" in line)]
    named = [line for line in calls if re.search(r"\b(examples|photos|pictures)/", line)]
    return [
        line for line in dict.fromkeys(named) if not re.search(r"\bmine\b|s3:|bench|[A-Z]{4}", line.split(" # ")[0])
    ]


@pytest.fixture(scope="module")
def exact() -> Iterator[RunningService]:
    with running_service("--precision", "exact") as service:
        yield service


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, as it is here, with this environment as `.venv`."""
    folder = tmp_path_factory.mktemp("clone") / "repository"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for photographs in ("photos", "pictures"):
        (folder / photographs).mkdir()
        shutil.copy(ROOT / "examples/cat.jpg", folder / photographs)
        PIL.Image.open(ROOT / "examples/dog.jpg").save(folder / photographs / "dog.png")
    commands = folder / ".venv/bin"
    commands.mkdir(parents=True)
    (commands / "python").symlink_to(sys.executable)
    (commands / "convmlp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service.cli "$@"\n')
    (commands / "pip").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
    for name in ("convmlp", "pip"):
        (commands / name).chmod(0o755)
    (folder / ".venv/.serve").touch()
    return folder


def run(command: str, clone: Path, service: RunningService) -> str:
    """What a command prints there; its address is the running service's. It fails where the command does. A deadline is
    later than the README's, which a busy machine misses."""
    command = command.replace("localhost:8000", service.url.removeprefix("http://"))
    command = re.sub(r"(X-Request-Timeout-Ms): \d+", rf"\1: {PATIENCE_S * 1000:.0f}", command)
    path = f"{clone / '.venv/bin'}:{os.environ['PATH']}"
    environment = {"CONVMLP_URL": service.url, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PATH": path}
    script = command.replace("make serve", "make --dry-run serve")
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.mark.parametrize("command", commands())
def test_a_pasted_command_succeeds(command: str, clone: Path, exact: RunningService) -> None:
    """Each runs unchanged, but for the service's port and the deadline; files that it names exist, and curl gets no
    error."""
    if pulled := re.search(r"models pull (\S+)", command):  # needs a network
        assert pulled[1] in CATALOGUE
        return
    if installed := re.search(r"pip install '\./client\[(\w+)\]'", command):
        extras = tomllib.loads((clone / "client/pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        assert installed[1] in extras
        return
    out = run(command.replace("curl ", "curl --silent --show-error --fail "), clone, exact)
    if SERVES.search(command):
        assert ".venv/bin/convmlp serve" in out
        given = re.search(r'ARGS="([^"]*)"', command)
        for flag in re.findall(r"--([a-z-]+)", given[1] if given else ""):
            assert flag.replace("-", "_") in Settings.model_fields
    for target in re.findall(r"(?:-o|--save) (\S+)", command):
        assert (clone / target).stat().st_size > 1000


@pytest.mark.parametrize("command", documented())
def test_a_command_of_the_other_pages_succeeds(command: str, clone: Path, exact: RunningService) -> None:
    """Each runs unchanged as well, with `.venv/bin` on the PATH, as the README states."""
    run(command.replace("curl ", "curl --silent --show-error --fail "), clone, exact)


def test_the_other_pages_have_commands() -> None:
    """The test above finds some."""
    assert len(documented()) > 5


@pytest.mark.parametrize(("command", "output"), printed())
def test_an_output_is_as_printed(command: str, output: str, clone: Path, exact: RunningService) -> None:
    """With `--precision exact` the answer is the README's; … stands for what it leaves out."""
    answer = run(command.replace("curl ", "curl --silent "), clone, exact)
    expected = "".join(line.strip() for line in output.splitlines()).replace(", …", "…")
    pattern = ".*".join(map(re.escape, expected.split("…")))
    assert re.fullmatch(pattern, answer.strip(), re.DOTALL), answer


def test_the_python_code_runs(clone: Path, exact: RunningService) -> None:
    """It draws, and prints a breed for each picture."""
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    (clone / "readme.py").write_text(code.replace("localhost:8001", exact.grpc_address), encoding="utf-8")
    lines = run(f"{sys.executable} readme.py", clone, exact).splitlines()
    assert {line.split()[0] for line in lines} == {"examples/cat.jpg", "examples/dog.jpg"}
    assert "examples/dog.jpg samoyed" in lines
    assert (clone / "boxes.png").stat().st_size > 1000


def test_the_picture_is_the_answer(clone: Path, exact: RunningService) -> None:
    """The first picture is what the second command draws."""
    answer = "curl --silent --data-binary @examples/dog.jpg -H 'Accept: image/png' localhost:8000/analyze -o drawn.png"
    run(answer, clone, exact)
    with PIL.Image.open(clone / "drawn.png") as drawn, PIL.Image.open(ROOT / "docs/answer.jpg") as shown:
        assert drawn.size == shown.size
        difference = np.asarray(drawn.convert("RGB"), np.int16) - np.asarray(shown.convert("RGB"), np.int16)
    assert np.abs(difference).mean() < 3  # JPEG's own loss


def test_the_figures_are_measured() -> None:
    """Each rate of the table is the better of the two arrangements in docs/performance.md; so are the headline's."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    rates: dict[tuple[str, str], float] = {}
    for server, network, rate in re.findall(
        r"^\| \**([\w-]+)[\[\]\w]*\** ?[\d.]*\** \| ([\w-]+) \| [\w -]+ \| [^|]* \| [^|]* \| ([\d.]+)",
        page,
        re.MULTILINE,
    ):
        rates[server, network] = max(rates.get((server, network), 0.0), float(rate))
    names = {"mosec": "mosec", "LitServe": "litserve", "Triton": "nvidia-pytriton", "BentoML": "bentoml"}
    rows = dict(re.findall(r"^\| (\w+)[^|]* \| (\d+ \| \d+) \|", README, re.MULTILINE))
    for name, server in names.items():
        assert rows[name] == f"{rates[server, 'fastest']:.0f} | {rates[server, 'eager']:.0f}", name
    own = rates["convmlp", "fastest"]
    assert f"**{own:.0f} pictures a second" in README
    assert f"| **this one** | {own:.0f} |" in README
    first = max(rate for (server, network), rate in rates.items() if network == "eager")
    assert f"reaches {first:.0f}" in README
    share = re.search(r"share of the limit at 32 clients \| ([\d.]+)", page)
    assert share is not None
    assert f"{float(share[1]):.0%}".replace("%", " %") in README


def test_it_is_short() -> None:
    """Below 150 lines, with a heading where other pages link to."""
    assert len(README.splitlines()) < 150
