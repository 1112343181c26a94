"""Leaves out libraries of wheels that the service hardly calls: `python unused_libraries.py SITE_PACKAGES BLAS`.

Pillow is linked to libxcb for pictures of an X server's screen, and NumPy to OpenBLAS. A small library takes the place
of each, with the functions that are expected of it: for NumPy's products of matrices those of the object file BLAS,
which is compiled from blas.c. A call of any other would end the process with a message. Its name begins with `no_` in
place of `lib`. Needs binutils.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ASSEMBLY = """
.section .rodata
message: .ascii "{user} called a function of {library}, which this image leaves out\\n"
.equ length, . - message
.text
called:
    movl $1, %eax
    movl $2, %edi
    leaq message(%rip), %rsi
    movl $length, %edx
    syscall
    ud2
.section .note.GNU-stack, "", @progbits
"""
"""Writes the message to standard error (file 2, by the system call 1), and ends the process."""


def main(site_packages: Path, blas: Path) -> None:
    for user, modules, libraries, name, given in (
        ("Pillow", "PIL/*.so", "pillow.libs", "libxcb", None),
        ("NumPy", "numpy/*/*.so", "numpy.libs", "libscipy_openblas64_", blas),
    ):
        message = ASSEMBLY.format(user=user, library=name)
        _leave_out(set(site_packages.glob(modules)), site_packages / libraries, name, message, given)


def _leave_out(modules: set[Path], folder: Path, name: str, message: str, given: Path | None) -> None:
    """Replace the library of this name, and remove those that no module needs any more."""
    replaced = list(folder.glob(f"{name}-*.so*"))
    users = {*modules, *folder.iterdir()} - set(replaced)
    expected = {symbol for user in users for symbol in _symbols(user, "--undefined-only")}
    for library in replaced:
        _replace(library, _renamed(library.name), expected & _symbols(library, "--defined-only"), message, given)
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


def _replace(library: Path, name: str, symbols: set[str], message: str, given: Path | None) -> None:
    """Put a library of this name in the place of `library`, with these symbols, NAME or NAME@VERSION: those of the
    object file `given`, and for all others a function that ends the process."""
    own = set(_output("nm", "--format=just-symbols", "--defined-only", given).split()) if given else set()
    symbols = symbols - own
    versions: dict[str, list[str]] = {}
    for symbol in sorted(symbols):
        function, _, version = symbol.partition("@")
        versions.setdefault(version, []).append(function)
    functions = [function for names in versions.values() for function in names]
    lines = [f".globl {one}\n.type {one}, @function\n.set {one}, called\n" for one in functions]
    script = "".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items())
    with tempfile.TemporaryDirectory() as folder:
        source, script_file, object_file = (Path(folder, name) for name in ("a.s", "versions", "a.o"))
        source.write_text(message + "".join(lines), encoding="ascii")
        script_file.write_text(script, encoding="ascii")
        subprocess.run(["as", "-o", object_file, source], check=True)
        versioned = [] if "" in versions else [f"--version-script={script_file}"]
        link = ["ld", "-shared", "--soname", name, "--build-id=none", "-s", *versioned]
        objects = [object_file, *([given] if given else [])]
        subprocess.run([*link, "-o", library.with_name(name), *objects], check=True)
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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
