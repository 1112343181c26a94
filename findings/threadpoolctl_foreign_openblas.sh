#!/usr/bin/env bash
# threadpoolctl 3.8.0: a loaded library that is named like OpenBLAS, but has another set of functions, makes every call raise.
#
# threadpoolctl finds libraries by the beginnings of their file names. Those of OpenBLAS have many builds with other suffixes, so
# it looks for the function by which it asks for the number of threads. Where a library whose name begins with libopenblas lacks
# it, `threadpool_info` and `threadpool_limits` raise TypeError (cannot unpack non-iterable NoneType object), for a program that only wants
# to limit other libraries. So a smaller library in the place of an unused OpenBLAS (as wheels bring it) needs another name.
# The script needs a C compiler; without one it ends without a verdict.
set -euo pipefail
if ! command -v cc >/dev/null; then
  echo "there is no C compiler: nothing to see"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install threadpoolctl==3.8.0
echo 'int unrelated(void) { return 0; }' >"$folder/other.c"
cc -shared -fPIC -o "$folder/libopenblas-other.so" "$folder/other.c"
cp "$folder/libopenblas-other.so" "$folder/libother.so"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import ctypes
import sys
from importlib.metadata import version

import threadpoolctl

print("threadpoolctl", version("threadpoolctl"))
folder = sys.argv[1]
ctypes.CDLL(f"{folder}/libother.so")
with threadpoolctl.threadpool_limits(1):
    print("a library of another name:", threadpoolctl.threadpool_info())
ctypes.CDLL(f"{folder}/libopenblas-other.so")
for call in (threadpoolctl.threadpool_info, lambda: threadpoolctl.threadpool_limits(1)):
    try:
        call()
    except TypeError as error:
        print("the same library, named libopenblas-other.so: TypeError:", error)
    else:
        sys.exit("it no longer raises")
PYTHON
