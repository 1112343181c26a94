#!/bin/sh
# Prepares installed files for an image: finish.sh FOLDER EPOCH [PATTERN…]
# Removes files that never run there (tests, and the patterns, from site-packages). Compiles the rest, because the
# running service cannot write. Sets all times. Bytecode is checked by content, not time, so two builds make the same layers.
set -eu
folder=$1 epoch=$2
shift 2
for pattern in "$@"; do
    # shellcheck disable=SC2086  # the pattern must expand
    rm -rf "$folder"/lib/python3*/site-packages/$pattern
done
find "$folder" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
find "$folder" -name '*.a' -delete
# Some packages contain files for newer versions of Python, which never run here and cannot be compiled.
python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -s "$folder" -p /usr/local "$folder" || :
find "$folder" -exec touch --no-dereference --date="@$epoch" {} +
