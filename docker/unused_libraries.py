"""Leaves out libraries of wheels that the service never calls: `python unused_libraries.py SITE_PACKAGES`.

Pillow is linked to libxcb for pictures of an X server's screen. A small library takes its place, with the functions
that are expected of it. A call of one would end the process with a message. Its name begins with `no_` in place of
`lib`. Needs binutils.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

WHEELS = (("PIL/*.so", "pillow.libs", ("libxcb",)),)
"""Of each wheel the modules, the folder of their libraries, and which of these are replaced."""
MESSAGE = "Pillow called a function of libxcb, which this image leaves out"
ASSEMBLY = f"""
.section .rodata
message: .ascii "{MESSAGE}\\n"
.equ length, . - message
.text
called:
    movl $1, %eax
    movl $2, %edi
    leaq message(%rip), %rsi
    movl $length, %edx
    syscall
    ud2
"""
"""Writes the message to standard error (file 2, by the system call 1), and ends the process."""


def main(site_packages: Path) -> None:
    for modules, libraries, names in WHEELS:
        _leave_out(set(site_packages.glob(modules)), site_packages / libraries, names)


def _leave_out(modules: set[Path], folder: Path, names: tuple[str, ...]) -> None:
    """Replace the libraries of these names, and remove those that no module needs any more."""
    replaced = [library for name in names for library in folder.glob(f"{name}-*.so*")]
    users = {*modules, *folder.iterdir()} - set(replaced)
    expected = {symbol for user in users for symbol in _symbols(user, "--undefined-only")}
    for library in replaced:
        _replace(library, _renamed(library.name), expected & _symbols(library, "--defined-only"))
    for user in users:
        content = user.read_bytes()
        for library in replaced:  # names of the same length, so nothing moves
            content = content.replace(library.name.encode(), _renamed(library.name).encode())
        user.write_bytes(content)
    needed, left = set(modules), set(modules)
    while left:
        left = {folder / name for one in left for name in _needed(one) if (folder / name).exists()} - needed
        needed |= left
    for library in set(folder.iterdir()) - needed:
        library.unlink()


def _renamed(name: str) -> str:
    return f"no_{name.removeprefix('lib')}"


def _replace(library: Path, name: str, symbols: set[str]) -> None:
    """Put a library of this name in the place of `library`, with these functions. A symbol is NAME or NAME@VERSION."""
    versions: dict[str, list[str]] = {}
    for symbol in sorted(symbols):
        function, _, version = symbol.partition("@")
        versions.setdefault(version, []).append(function)
    functions = [function for names in versions.values() for function in names]
    lines = [f".globl {one}\n.type {one}, @function\n.set {one}, called\n" for one in functions]
    script = "".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items())
    with tempfile.TemporaryDirectory() as folder:
        source, script_file, object_file = (Path(folder, name) for name in ("a.s", "versions", "a.o"))
        source.write_text(ASSEMBLY + "".join(lines), encoding="ascii")
        script_file.write_text(script, encoding="ascii")
        subprocess.run(["as", "-o", object_file, source], check=True)
        versioned = [] if "" in versions else [f"--version-script={script_file}"]
        link = ["ld", "-shared", "--soname", name, "--build-id=none", "-s", *versioned]
        subprocess.run([*link, "-o", library.with_name(name), object_file], check=True)
    library.unlink()


def _symbols(library: Path, kind: str) -> set[str]:
    """Dynamic symbols: of one kind, each with its version if it has one."""
    listed = _output("nm", "--dynamic", "--format=just-symbols", kind, library)
    return {symbol.replace("@@", "@") for symbol in listed.split()}


def _needed(library: Path) -> list[str]:
    return re.findall(r"NEEDED\s+(\S+)", _output("objdump", "--private-headers", library))


def _output(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
