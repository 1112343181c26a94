#!/bin/sh
# Prepares installed files for an image: finish.sh FOLDER EPOCH [PATTERN…]
# Takes out what never runs there (tests, and the patterns, from site-packages), compiles the rest, since the running
# service cannot write, and sets all times. Bytecode goes by content and not by time: two builds make the same layers.
set -eu
folder=$1 epoch=$2
shift 2
for pattern in "$@"; do
    # shellcheck disable=SC2086  # a pattern is there to be expanded
    rm -rf "$folder"/lib/python3*/site-packages/$pattern
done
find "$folder" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
find "$folder" -name '*.a' -delete
# Some packages carry files for newer versions of Python, which never run here and cannot be compiled.
python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -s "$folder" -p /usr/local "$folder" || :
find "$folder" -exec touch --no-dereference --date="@$epoch" {} +
