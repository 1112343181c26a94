"""The peers' virtual environments: `FOLDER/envs/NAME`, created once, each with its pinned packages.

Each also has this environment's packages, after its own, so that torch and the model code exist once. The report lists
every peer that cannot be installed, with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "peers" / "requirements"
INSTALL_S = 600
TOO_NEW = {"triton": (3, 11, 7)}
"""By peer, the first Python whose standard library the peer's own Python of the same minor version cannot load."""


class CannotInstall(Exception):
    """Why, in a line."""


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is created if it is missing or its packages changed.

    A peer without requirements uses this environment.

    Raises:
        CannotInstall: the environment could not be created.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    home = folder / "envs" / name
    python, file_version = home / "bin" / "python", home / "installed"
    interpreter = _interpreter(name)
    wanted = "\n".join([requirements.read_text(encoding="utf-8"), sys.prefix, interpreter])
    if file_version.exists() and file_version.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {name} ...", flush=True)
    _run(name, interpreter, "-m", "venv", "--without-pip", "--clear", str(home))
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (packages / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    _run(name, str(python), "-m", "pip", "install", "--quiet", "--no-warn-script-location", "-r", str(requirements))
    file_version.write_text(wanted, encoding="utf-8")
    return python


def _interpreter(name: str) -> str:
    """The Python for the environment: this one, or one of the same minor version that is old enough."""
    if name not in TOO_NEW or sys.version_info[:3] < TOO_NEW[name]:
        return sys.executable
    major, minor, _ = TOO_NEW[name]
    if sys.version_info[:2] == (major, minor):
        old_enough = f"import sys; sys.exit(sys.version_info[:3] >= {TOO_NEW[name]})"
        for folder in (*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"):
            python = Path(folder) / f"python{major}.{minor}"
            if python.exists() and subprocess.run([python, "-c", old_enough], check=False).returncode == 0:
                return str(python)
    raise CannotInstall(f"{name} needs a Python before {'.'.join(map(str, TOO_NEW[name]))}")


def _run(name: str, *command: str) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"{name}: {error}") from error
    if ended.returncode:
        last = (ended.stderr.strip() or "no reason given").splitlines()[-1]
        raise CannotInstall(f"{name}: {last[:200]}")
