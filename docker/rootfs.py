"""Creates the root file system of the images: Python, the system libraries it loads, and nothing else.

No shell, no package manager, no pip: absent files need no update and help no intruder. Runs in a build stage, on the
Debian image whose files it copies: `python rootfs.py ROOT`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

USER, USER_ID = "convmlp", 10001
RUN_DIR, MODELS_DIR = "run/convmlp", "models"

LEFT_OUT = (
    *("site-packages", "config-*", "ensurepip", "venv", "distutils", "lib2to3"),
    *("test", "_test*.so", "_ctypes_test*.so", "_xx*.so", "xx*.so"),
    *("idlelib", "tkinter", "_tkinter*.so", "turtle.py", "turtledemo", "pydoc_data", "curses", "_curses*.so"),
    *("sqlite3", "_sqlite3*.so", "dbm", "_dbm*.so", "_gdbm*.so", "xmlrpc"),
    *("nis.*.so", "audioop*.so", "ossaudiodev*.so"),
)
"""Parts of the standard library that nothing in the images imports, with the libraries that they alone load."""
LIBRARIES = (
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libutil.so.1"),
    *("libexpat.so.1", "libgcc_s.so.1", "libstdc++.so.6", "libz.so.1"),
)
"""Libraries that binary wheels may expect (PEP 600), beyond those that Python itself is linked to."""
OPTIONAL_LIBRARIES = ("libfribidi.so.0",)
"""Copied where the image has them. Pillow loads this one to draw text from right to left."""
FONTS = Path("/usr/share/fonts")
"""All fonts in it are copied, for labels that are drawn on pictures."""
FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/os-release", "/usr/lib/os-release")


def main(root: Path) -> None:
    for link in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / link).mkdir(parents=True)
        (root / link).symlink_to(f"usr/{link}")
    copied = [*_copy_python(root), *_copy_libraries(root)]
    for name in FILES:
        copied.append(_copy(Path(name), root))
    copied += [_copy(path, root) for path in sorted(FONTS.rglob("*.tt[fc]"))]
    _write_package_records(root, copied)
    _write_etc(root)
    for name, mode, owner in (("tmp", 0o1777, 0), (RUN_DIR, 0o755, USER_ID), (MODELS_DIR, 0o755, USER_ID)):
        folder = root / name
        folder.mkdir(parents=True)
        folder.chmod(mode)
        os.chown(folder, owner, owner)
    subprocess.run(["ldconfig", "-r", str(root)], check=True)
    shutil.rmtree(root / "var/cache", ignore_errors=True)  # ldconfig's cache of times and inodes


def _copy_python(root: Path) -> list[Path]:
    """The interpreter, with its names, and the standard library."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = Path(sys.executable).resolve()
    bin_dir = root / "usr/local/bin"
    bin_dir.mkdir(parents=True)
    shutil.copy2(python, bin_dir / version)
    for name in ("python", "python3"):
        (bin_dir / name).symlink_to(version)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        library,
        root / str(library).lstrip("/"),
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", *LEFT_OUT),
    )
    return [python]


def _copy_libraries(root: Path) -> list[Path]:
    """Every shared library that the interpreter and its modules load, directly or not."""
    modules = Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")
    copied = [module for module in modules if not any(module.match(pattern) for pattern in LEFT_OUT)]
    found = {path for binary in (Path(sys.executable).resolve(), *copied) for path in _loaded_by(binary)}
    cache = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    for name in (*LIBRARIES, *OPTIONAL_LIBRARIES):
        entry = re.search(rf"^\s*{re.escape(name)} \(.*x86-64.*\) => (\S+)$", cache, re.MULTILINE)
        if entry is None and name in OPTIONAL_LIBRARIES:
            continue
        if entry is None:
            raise SystemExit(f"{name} is not in this image; binary wheels need it")
        library = Path(entry[1])
        found |= {library, *_loaded_by(library)}
    return [_copy(path, root) for path in sorted(found)]


def _loaded_by(binary: Path) -> set[Path]:
    listing = subprocess.run(["ldd", str(binary)], check=True, capture_output=True, text=True).stdout
    if "not found" in listing:
        raise SystemExit(f"{binary} lacks libraries:\n{listing}")
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listing)}


def _copy(path: Path, root: Path) -> Path:
    """Copy a file to its requested name; returns its real path."""
    real = path.resolve()
    # /lib is a link to /usr/lib, in both root file systems.
    target = root / str(path.parent.resolve() / path.name).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(real, target)
    return real


def _write_package_records(root: Path, copied: list[Path]) -> None:
    """Write the package records for scanners (one file a package, like distroless images), and each copyright."""
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for package in sorted({owner for path in copied for owner in _owners(path)}):
        name = package.partition(":")[0]
        text = subprocess.run(["dpkg-query", "--status", package], check=True, capture_output=True, text=True).stdout
        (status / name).write_text(text, encoding="utf-8")
        _copy(Path("/usr/share/doc") / name / "copyright", root)


def _owners(path: Path) -> list[str]:
    # Packages from before the merge of /lib into /usr/lib list their files by the old names.
    for name in (str(path), str(path).removeprefix("/usr")):
        found = subprocess.run(["dpkg-query", "--search", name], check=False, capture_output=True, text=True)
        if found.returncode == 0:
            return [one.partition(": ")[0] for one in found.stdout.splitlines()]
    return []  # Python itself, and files created at installation


def _write_etc(root: Path) -> None:
    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    users = (("root", 0, "/root"), (USER, USER_ID, "/tmp"))
    (etc / "passwd").write_text("".join(f"{name}:x:{uid}:{uid}:{name}:{home}:/nologin\n" for name, uid, home in users))
    (etc / "group").write_text("".join(f"{name}:x:{uid}:\n" for name, uid, _ in users))
    # Python's own library, and the folders that NVIDIA's container toolkit adds when a container starts.
    (etc / "ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n/usr/local/lib\n")
    (etc / "ld.so.conf.d").mkdir()
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
