"""The path of one request through the project's code: its calls, its files, its changes of file.

Real front-end processes decode a real JPEG; a real worker process has a device that answers at once. One warm request
of each kind is sent, and each call of a function of `service/` and `model/` is recorded in all processes and threads.
The client is another process and does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPResponse
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from benchmarks.calls import Call, Recorder, count, listing
from convmlp.v1.vision_pb2 import ClassifyRequest
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE

ROOT = Path(__file__).resolve().parent.parent
OWN_FOLDERS = ("service", "model")
REST, GRPC, WORKER = "rest", "grpc", "worker"
PARTS: Mapping[str, tuple[str, Sequence[str]]] = {
    REST: ("service.cli", ["rest"]),
    GRPC: ("service.cli", ["grpc"]),
    WORKER: ("benchmarks.noop", ["--part", "worker"]),
}
"""The processes: each one's module and its arguments."""
OWN_TIMERS = frozenset({"service/observability/event_loop.py"})
"""Files of what a process does by the clock, with and without requests."""
MODEL = "fake_classify"
"""The model of the worker of `benchmarks.noop`."""
CONTROL_FD = "BENCH_PATH_CONTROL_FD"
"""Environment variable of the parts: the pipe that starts and stops their recorders."""
LISTENING = re.compile(r"listening.*127\.0\.0\.1:(\d+)")
"""The port in the log of a front-end."""
START_S = 60.0
ANSWER_S = 20.0
STOP_S = 10.0
WARM_UP = 5
TRACES = 9
"""Traces of each kind. The one with the median number of calls is shown: timers can add calls, and two pictures can
share a batch or not."""
KINDS = ("classify", "multipart", "multipart-2", "open-inference", "hugging-face", "grpc", "grpc-stream")
"""All with one picture, but for `multipart-2` with two."""
BOUNDARY = "between-two-pictures"

Send = Callable[[], None]
"""Sends one request and reads its answer to the end. Raises OSError, grpc.RpcError or Refused."""


class Refused(Exception):
    """The answer is an error."""


class Servers:
    """The processes of the service, each with a recorder. Close them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._controls: list[Connection] = []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVMLP_")} | {
            "CONVMLP_WORKER_ADDRESS": f"ipc://{folder}/worker",
            "CONVMLP_HTTP_PORT": "0",
            "CONVMLP_GRPC_PORT": "0",
            "CONVMLP_GRPC_METRICS_PORT": "0",
            # Heartbeats would be recorded as well.
            "CONVMLP_HEARTBEAT_INTERVAL_MS": "5000",
            "CONVMLP_WORKER_TIMEOUT_MS": "60000",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "client"))),
        }
        for part in PARTS:
            control, theirs = Pipe()
            with (folder / f"{part}.log").open("wb") as log, theirs:
                self._children[part] = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.path", "--part", part],
                    env={**environment, CONTROL_FD: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._controls.append(control)

    def port(self, part: str) -> int:
        """The port of a front-end, from its log. Raises SystemExit if it never listens."""
        until_s = time.monotonic() + START_S
        while (found := LISTENING.search(self._log(part))) is None:
            self._pause("it does not listen", until_s, part)
        return int(found[1])

    def wait_for(self, send: Send) -> None:
        """Send a request until it is answered. Raises SystemExit if it never is."""
        until_s = time.monotonic() + START_S
        while True:
            try:
                return send()
            except (OSError, grpc.RpcError, Refused) as error:
                self._pause(str(error), until_s, *PARTS)

    def _pause(self, why: str, until_s: float, *parts: str) -> None:
        if time.monotonic() > until_s or any(child.poll() is not None for child in self._children.values()):
            raise SystemExit("\n".join([f"no answer: {why}", *map(self._log, parts)])) from None
        time.sleep(0.05)

    def _log(self, part: str) -> str:
        return (self._folder / f"{part}.log").read_text(encoding="utf-8")

    def record(self, send: Send) -> list[Call]:
        """The calls that one request makes in all processes."""
        for control in self._controls:
            control.send("start")
            control.recv()
        send()
        calls: list[Call] = []
        for control in self._controls:
            control.send("stop")
            calls += without_timers(control.recv())
        return calls

    def close(self) -> None:
        for child in self._children.values():
            child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for control in self._controls:
            control.close()


def _run_part(part: str) -> None:
    """Run a part's module in this process, with a recorder."""
    recorder = Recorder(part, ROOT, OWN_FOLDERS)
    control = Connection(int(os.environ[CONTROL_FD]))
    threading.Thread(target=_obey, args=(control, recorder), daemon=True).start()
    module, arguments = PARTS[part]
    sys.argv = [module, *arguments]
    recorder.install()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _obey(control: Connection, recorder: Recorder) -> None:
    """Start and stop the recorder on request; end the process when the other end of the pipe is closed."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            match control.recv():
                case "start":
                    recorder.start()
                    control.send("started")
                case "stop":
                    control.send(recorder.stop())
    os.kill(os.getpid(), signal.SIGTERM)


class HttpCaller:
    """POSTs over one kept connection, each by one write."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_S)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *lines, f"Content-Length: {len(body)}", "", ""]
        self._socket.sendall("\r\n".join(head).encode("ascii") + body)
        with HTTPResponse(self._socket, method="POST") as response:
            response.begin()
            answer = response.read()
            if response.status != 200:
                raise Refused(f"{path}: HTTP {response.status}: {answer[:1000]!r}")

    def close(self) -> None:
        self._socket.close()


def _form(pictures: Sequence[bytes]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="picture.jpg"\r\n'
    before = f"{head}Content-Type: image/jpeg\r\n\r\n".encode("ascii")
    return b"".join(before + picture + b"\r\n" for picture in pictures) + f"--{BOUNDARY}--\r\n".encode("ascii")


def _kinds(http: HttpCaller, stub: VisionStub, picture: bytes) -> Mapping[str, Send]:
    jpeg = {"Content-Type": "image/jpeg"}
    form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    # Open Inference with the binary tensor extension; the answer is JSON.
    element = len(picture).to_bytes(4, "little") + picture
    parameters = {"binary_data_size": len(element)}
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters}
    inference = json.dumps({"inputs": [tensor]}).encode("ascii")
    binary = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(inference))}

    def unary() -> None:
        stub.Classify(ClassifyRequest(image=picture), timeout=ANSWER_S, wait_for_ready=True)

    def stream() -> None:
        (reply,) = stub.ClassifyStream(iter([ClassifyRequest(image=picture)]), timeout=ANSWER_S, wait_for_ready=True)
        if reply.HasField("error"):
            raise Refused(f"ClassifyStream: {reply.error.message}")

    return {
        "classify": lambda: http.post("/classify", picture, jpeg),
        "multipart": lambda: http.post("/classify", _form([picture]), form),
        "multipart-2": lambda: http.post("/classify", _form([picture, picture]), form),
        "open-inference": lambda: http.post(f"/v2/models/{MODEL}/infer", inference + element, binary),
        "hugging-face": lambda: http.post("/compat/huggingface/classify", picture, jpeg),
        "grpc": unary,
        "grpc-stream": stream,
    }


def trace(kinds: Sequence[str] = KINDS, traces: int = TRACES) -> Mapping[str, Sequence[Sequence[Call]]]:
    """Traces of each kind of request, each after the same warm-up."""
    picture = REFERENCE_PICTURE.read_bytes()
    traced: dict[str, list[list[Call]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-path-") as folder,
        _servers(Path(folder)) as servers,
        closing(HttpCaller(servers.port(REST))) as http,
        grpc.insecure_channel(f"127.0.0.1:{servers.port(GRPC)}") as channel,
    ):
        sends = _kinds(http, VisionStub(channel), picture)
        for kind in kinds:
            servers.wait_for(sends[kind])
            for _ in range(WARM_UP):
                sends[kind]()
            traced[kind] = [servers.record(sends[kind]) for _ in range(traces)]
    return traced


@contextmanager
def _servers(folder: Path) -> Iterator[Servers]:
    servers = Servers(folder)
    try:
        yield servers
    finally:
        servers.close()


def without_timers(calls: Sequence[Call]) -> Iterator[Call]:
    """The calls of one process without those of `OWN_TIMERS`, and those that they make."""
    below: dict[str, int] = {}  # by thread, the depth of a timer's call that may still run
    for call in calls:
        if call.depth <= below.get(call.thread, call.depth):
            below.pop(call.thread, None)
            if call.file in OWN_TIMERS:
                below[call.thread] = call.depth
            else:
                yield call


def typical(traces: Sequence[Sequence[Call]]) -> Sequence[Call]:
    """The trace with the median number of calls."""
    return sorted(traces, key=len)[len(traces) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.path", description=__doc__)
    parser.add_argument("--only", metavar="KIND,…", default=",".join(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument("--calls", action="store_true", help="list the calls of each request, thread by thread")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        _run_part(arguments.part)
        return
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    shown = {kind: typical(traces) for kind, traces in trace(kinds).items()}
    if arguments.json:
        print(json.dumps({kind: _as_json(calls, arguments.calls) for kind, calls in shown.items()}, indent=2))
        return
    for line in _table(shown):
        print(line)
    if arguments.calls:
        for kind, calls in shown.items():
            print("", f"## {kind}", *listing(calls), sep="\n")


def _table(shown: Mapping[str, Sequence[Call]]) -> Iterator[str]:
    yield f"{'request':16}{'calls':>7}{'of them in the worker':>23}{'files':>7}{'changes of file':>17}"
    for kind, calls in shown.items():
        counts = count(calls)
        in_worker = sum(call.process == WORKER for call in calls)
        yield f"{kind:16}{counts.calls:7}{in_worker:23}{counts.files:7}{counts.changes:17}"


def _as_json(calls: Sequence[Call], with_calls: bool) -> Mapping[str, object]:
    more = {"trace": [call._asdict() for call in calls]} if with_calls else {}
    return {**count(calls)._asdict(), **more}


if __name__ == "__main__":
    main()
