#!/usr/bin/env bash
# grpcio 1.85.3: credentials of dynamic_ssl_server_credentials whose fetcher returns None for "unchanged" can be used for one port only.
#
# The documentation lets the fetcher return None if the certificate has not changed. The first port gets the initial
# configuration, and any further one asks the fetcher for its first certificate: with None, add_secure_port fails with "Failed
# to bind to address", although the address is free. A program that takes this for a port in use serves at one address less.
# Credentials of their own for each port work.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install grpcio==1.85.3 trustme==1.2.1
GRPC_VERBOSITY=NONE "$folder/venv/bin/python" - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import grpc
import trustme

print("grpcio", grpc.__version__)
issued = trustme.CA().issue_cert("localhost")
chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
initial = grpc.ssl_server_certificate_configuration([(issued.private_key_pem.bytes(), chain)])


def credentials() -> grpc.ServerCredentials:
    return grpc.dynamic_ssl_server_credentials(initial, lambda: None)


server = grpc.server(ThreadPoolExecutor(1))
shared = credentials()
print("first port:", "bound" if server.add_secure_port("127.0.0.1:0", shared) else "not bound")
try:
    server.add_secure_port("127.0.0.1:0", shared)
except RuntimeError as error:
    print("second port, the same credentials:", str(error).split(";")[0])
else:
    raise SystemExit("the second port is bound: the behaviour has changed")
assert server.add_secure_port("127.0.0.1:0", credentials())
print("second port, credentials of its own: bound")
PYTHON
