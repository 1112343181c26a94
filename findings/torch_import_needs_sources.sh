#!/usr/bin/env bash
# torch 2.13.0: `import torch` reads the text of its own modules, so it fails where there is bytecode alone.
#
# torch/utils/_config_module.py reads the source of each configuration module with inspect.getsource while it is imported.
# An image whose .py files were replaced by .pyc (`compileall -b`), which makes starts faster and images smaller, ends with
# "could not get source code". With the sources of its modules named *config.py torch is imported, and warns of others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
cd "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
"$folder/venv/bin/python" -c 'import torch; print("torch", torch.__version__, "with its sources")'
find torch -name '*config.py' -print0 | tar --create --null --files-from - --file "$folder/sources.tar"
"$folder/venv/bin/python" -m compileall -q -b torch >/dev/null || true # some templates are no Python
find torch -name '*.py' -delete
if error=$("$folder/venv/bin/python" -W ignore -c 'import torch' 2>&1); then
  echo "torch is imported from bytecode alone now"
  exit 1
fi
echo "without: ${error##*$'\n'}"
[ "${error##*$'\n'}" = "OSError: could not get source code" ]
grep -q "torch/utils/_config_module.py" <<<"$error"
tar --extract --file "$folder/sources.tar"
"$folder/venv/bin/python" -W ignore -c 'import torch; print("torch", torch.__version__, "with the sources of", "*config.py")'
