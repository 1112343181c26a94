#!/usr/bin/env bash
# prometheus_client 0.26.0 fails on an `Accept` whose version is no number, and sends what a quality of 0 excludes.
#
# `choose_encoder` compares the version's parts with numbers: `application/openmetrics-text; version=newest` raises
# TypeError, so that its HTTP server answers 500 instead of the default format. It never looks at `q`: with
# `application/openmetrics-text;q=0` it chooses OpenMetrics, and `gzip_accepted("gzip;q=0")` is true, although RFC 9110,
# section 12.4.2, calls a quality of 0 "not acceptable".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install prometheus-client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from prometheus_client.exposition import choose_encoder, gzip_accepted

print("prometheus_client", version("prometheus-client"))
try:
    chosen = choose_encoder("application/openmetrics-text; version=newest")[1]
except TypeError as error:
    chosen = f"TypeError: {error}"
print("version=newest:", chosen)
excluded = choose_encoder("application/openmetrics-text;q=0, text/plain")[1]
print("openmetrics;q=0, text/plain:", excluded)
print("gzip;q=0:", gzip_accepted("gzip;q=0"))
assert chosen.startswith("TypeError"), "such a version is accepted or ignored now"
assert excluded.startswith("application/openmetrics-text"), "a quality of 0 excludes a format now"
assert gzip_accepted("gzip;q=0"), "a quality of 0 excludes gzip now"
PYTHON
