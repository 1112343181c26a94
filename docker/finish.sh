#!/bin/sh
# Prepares installed files for an image: finish.sh FOLDER EPOCH [PATTERN…]
# Removes files that never run there: tests, headers, type stubs, what only debuggers read, and the patterns, from
# site-packages. Compiles the rest, because the running service cannot write. KEEP_SOURCES=1 keeps the sources of Python
# beside their bytecode; else a traceback has file and line, but not its text. Sets all times. Bytecode is never checked
# against sources, so two builds make the same layers.
set -eu
folder=$1 epoch=$2
shift 2
for pattern in "$@"; do
    # shellcheck disable=SC2086  # the pattern must expand
    rm -rf "$folder"/lib/python3*/site-packages/$pattern
done
find "$folder" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
find "$folder" -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \
    -o -name '*.pxi' \) -delete
if command -v strip >/dev/null; then
    # Libraries in *.libs were edited when their wheel was made; strip would misalign some of them.
    find "$folder" -type f -name '*.so*' ! -path '*.libs/*' -exec strip --strip-unneeded --preserve-dates {} +
fi
# Some packages contain files for newer versions of Python, which never run here and cannot be compiled.
python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -s "$folder" -p /usr/local "$folder" || :
if [ -z "${KEEP_SOURCES:-}" ]; then
    # torch reads the sources of its settings and of functions that are overloaded.
    find "$folder" -path '*/__pycache__/*.pyc' ! -path '*/torch/*config*.pyc' ! -path '*/torch/nn/*' \
        ! -path '*/torch/__pycache__/functional.*' -exec sh -c '
        for bytecode do
            module=${bytecode##*/}
            module=${bytecode%/__pycache__/*}/${module%.cpython-*}
            mv "$bytecode" "$module.pyc" && rm "$module.py"
        done' sh {} +
    find "$folder" -type d -name __pycache__ -empty -delete
fi
find "$folder" -exec touch --no-dereference --date="@$epoch" {} +
