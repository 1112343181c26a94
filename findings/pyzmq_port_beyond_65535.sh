#!/usr/bin/env bash
# pyzmq 27.1.0 (libzmq 4.3.5): a port above 65535 is taken without an error, and another port is used, the number modulo 65536.
#
# `bind("tcp://127.0.0.1:99999")` succeeds and listens at 34463, which only LAST_ENDPOINT shows; `connect` takes such an address as
# well. So a mistyped port of a worker or a client is found by nobody: each end uses some other port, or both the same wrong one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install pyzmq==27.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import random

import zmq

print("pyzmq", zmq.__version__, "libzmq", zmq.zmq_version())
with zmq.Context() as context:
    for _ in range(10):  # the port that is meant by none may be in use
        port = random.randrange(65_536 + 20_000, 65_536 + 60_000)
        with context.socket(zmq.ROUTER) as listener:
            try:
                listener.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise
                continue
            bound = listener.getsockopt_string(zmq.LAST_ENDPOINT)
            print(f"bind to port {port}: it listens at {bound}")
            assert bound == f"tcp://127.0.0.1:{port - 65_536}"
            with context.socket(zmq.DEALER) as caller:
                caller.setsockopt(zmq.LINGER, 0)
                caller.connect(f"tcp://127.0.0.1:{port}")
                caller.send(b"to a port that does not exist")
                assert listener.poll(10_000), "the message did not arrive"
                print("a message to that port arrives:", listener.recv_multipart()[1])
            break
PYTHON
