"""All that callers and operators of the service can see, as texts of entries with headings.

`record` starts the real front-ends as processes of their own, over a worker whose device is a fake, and asks what
`answers.py` lists. What differs from run to run (dates, durations, ports, paths, ids) is replaced by `<words>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fork_server import STDERR, STDOUT, ForkedProcess, ForkServer, run
from tests.recorded.answers import COMMANDS, COMMON, KEYS, NO_PICTURE, PICTURE, SERVICES, Http, Rpc
from tests.recorded.answers_compat import COMPAT
from tests.recorded.answers_grpc import OIP_GRPC, VISION
from tests.recorded.answers_http import HUGGING_FACE, OIP_HTTP, REST
from tests.recorded.asking import Grpc, ask_http
from tests.recorded.plain import metric_families, pretty, without_volatile
from tests.recorded.starter import Worker, open_worker

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
START_S = 240.0
HELP_WIDTH = "100"
RULE = "=== "

Entries = dict[str, str]
Convmlp = Callable[[Sequence[str]], str]


async def record() -> dict[str, Entries]:
    """The entries of each recorded file, by heading."""
    with tempfile.TemporaryDirectory(prefix="recorded-") as name:
        folder = Path(name)
        (folder / "keys").write_text("".join(f"{who} {key}\n" for who, key in KEYS.items()), encoding="ascii")
        (folder / "picture.png").write_bytes(PICTURE)
        (folder / "no_picture.pdf").write_bytes(NO_PICTURE)
        async with contextlib.AsyncExitStack() as stack:
            workers: dict[str, Worker | None] = {"alone": None}
            for service in ("open", "strict"):
                settings = {**COMMON, **SERVICES[service]}
                workers[service] = await stack.enter_async_context(open_worker(**settings))
            return await asyncio.to_thread(_record, folder, workers)


def _record(folder: Path, workers: Mapping[str, Worker | None]) -> dict[str, Entries]:
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        server = stack.enter_context(ForkServer(environment()))
        services = {name: Service(name, folder, worker, server.path) for name, worker in workers.items()}

        def convmlp(words: Sequence[str]) -> str:
            """Exit status, stdout and stderr of a command."""
            status, *streams = run(words, environment=environment(), folder=folder, server=server.path)
            lines = [f"exit status {status}"]
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                if stream:
                    lines.append(f"--- {name}")
                    lines += [line.rstrip() for line in stream.decode().strip("\n").splitlines()]
            return "\n".join(lines).rstrip("\n")  # typer ends an epilogue with a line of blanks

        for service in services.values():
            stack.callback(service.stop)
        for service in services.values():
            service.start()
        helps = pool.submit(_helps, convmlp)
        for service in services.values():
            service.wait()
        recorded: dict[str, Entries] = {
            "openapi.json": {"": _openapi(services["open"])},
            "openapi_strict.txt": {"": _openapi_changes(services)},
            **_answers(services),
            "help.txt": helps.result(),
            "commands.txt": _commands(convmlp, services["open"]),
            "metrics.txt": _metrics(services),
        }
        for service in services.values():
            service.stop()
        recorded["logs.txt"] = _logs(services)
    return {name: {title: _plain(text, folder) for title, text in rows.items()} for name, rows in recorded.items()}


def environment(**more: str) -> dict[str, str]:
    """Nothing of the caller's but what starts a program: no settings, no colours, a terminal of a fixed width."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    width = {"COLUMNS": HELP_WIDTH, "TERMINAL_WIDTH": HELP_WIDTH, "LINES": "50", "NO_COLOR": "1"}
    return {**kept, **width, "PYTHONPATH": os.pathsep.join(paths), "LANG": "C.UTF-8", "HOME": "/nonexistent", **more}


@dataclass
class Service:
    """A REST and a gRPC front-end, each a process; `worker` None: at an address where nobody is."""

    name: str
    folder: Path
    worker: Worker | None
    fork_server: str
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    processes: dict[str, ForkedProcess] = field(default_factory=dict)

    def start(self) -> None:
        settings: dict[str, Any] = {
            **COMMON,
            **SERVICES[self.name],
            "worker_address": self.worker.address if self.worker else f"ipc://{self.folder}/nobody",
            "log_format": "json",
            "http_port": 0,
            "grpc_port": 0,
            "grpc_metrics_port": 0,
        }
        if self.name == "strict":
            settings["api_keys_file"] = self.folder / "keys"
        variables = environment(**{f"CONVMLP_{name.upper()}": str(value) for name, value in settings.items()})
        for part in ("rest", "grpc"):
            with self.log(part).open("wb") as log:
                files = {STDOUT: log.fileno(), STDERR: log.fileno()}
                self.processes[part] = ForkedProcess(
                    (part,), variables, files, folder=self.folder, server=self.fork_server
                )

    def wait(self) -> None:
        """Until they answer, and where there is a worker until they are ready."""
        self.http_port = self._port("rest", r"127\.0\.0\.1:(\d+)")
        self.metrics_port = self._port("grpc", r"127\.0\.0\.1:(\d+)/metrics")
        self.grpc_port = self._port("grpc", r"127\.0\.0\.1:(\d+)(?!\d*/metrics)")
        probe = "/readyz" if self.worker else "/livez"
        _until(lambda: get(self.http_port, probe)[0] == 200)
        if self.worker:
            with contextlib.closing(Grpc(self.grpc_port)) as rpc:
                _until(rpc.serving)

    def _port(self, part: str, pattern: str) -> int:
        def found() -> re.Match[str] | None:
            assert self.processes[part].poll() is None, self.log(part).read_text()
            return re.search(pattern + "\\D", self.log(part).read_text())

        match = _until(found)
        assert match is not None
        return int(match[1])

    def log(self, part: str) -> Path:
        return self.folder / f"{self.name}-{part}.log"

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.release()
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextlib.contextmanager
    def held(self, held: bool) -> Iterator[None]:
        if held and self.worker is not None:
            self.worker.hold()
        try:
            yield
        finally:
            if held and self.worker is not None:
                self.worker.release()


def _until(condition: Callable[[], Any]) -> Any:  # noqa: ANN401
    end = time.monotonic() + START_S
    while not (found := condition()):
        assert time.monotonic() < end, "a front-end did not start"
        time.sleep(0.02)
    return found


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _answers(services: Mapping[str, Service]) -> dict[str, Entries]:
    clients = {name: Grpc(service.grpc_port) for name, service in services.items()}

    def over_http(request: Http) -> str:
        service = services[request.service]
        for _ in range(request.before):
            ask_http(request, service.http_port)
        with service.held(request.held):
            return f"{request.line}\n\n{ask_http(request, service.http_port)}"

    def over_grpc(request: Rpc) -> str:
        client = clients[request.service]
        for _ in range(request.before):
            client.ask(request, clients["open"])
        with services[request.service].held(request.held):
            return f"{request.method}\n\n{client.ask(request, clients['open'])}"

    try:
        return {
            "http.txt": _entries(REST, over_http),
            "huggingface.txt": _entries(HUGGING_FACE, over_http),
            "compat.txt": _entries(COMPAT, over_http),
            "oip_http.txt": _entries(OIP_HTTP, over_http),
            "grpc.txt": _entries(VISION, over_grpc),
            "oip_grpc.txt": _entries(OIP_GRPC, over_grpc),
            "grpc_services.txt": clients["open"].services(),
        }
    finally:
        for client in clients.values():
            client.close()


def _entries(requests: Any, ask: Callable[[Any], str]) -> Entries:  # noqa: ANN401
    entries: Entries = {}
    for request in requests:
        title = request.name if request.service == "open" else f"{request.service}: {request.name}"
        assert title not in entries, f"two requests are called {title!r}"
        entries[title] = ask(request)
    return entries


def _openapi(service: Service) -> str:
    return pretty(json.loads(get(service.http_port, "/openapi.json")[1]))


def _openapi_changes(services: Mapping[str, Service]) -> str:
    """What API keys and smaller bounds change in the document: lines after the lines that they replace."""
    plain, strict = (_openapi(services[name]).splitlines() for name in ("open", "strict"))
    lines = list(difflib.unified_diff(plain, strict, n=0, lineterm=""))[2:]
    return "\n".join(line for line in lines if not line.startswith("@@"))


def _metrics(services: Mapping[str, Service]) -> Entries:
    service = services["open"]
    assert service.worker is not None
    # A front-end with API keys has families beyond the others'.
    rest = [get(services[name].http_port, "/metrics")[1] for name in ("open", "strict")]
    return {
        "REST front-end": metric_families("".join(rest)),
        "gRPC front-end": metric_families(get(service.metrics_port, "/metrics")[1]),
        "worker": metric_families(service.worker.metrics()),
    }


def _logs(services: Mapping[str, Service]) -> Entries:
    """Each kind of line that was logged: level, event, and the names of its fields."""
    entries: Entries = {}
    for part in ("rest", "grpc"):
        kinds = set()
        for service in services.values():
            # What libraries in C write there is no JSON, and is not the service's.
            for line in map(json.loads, re.findall(r"^\{.*$", service.log(part).read_text(), re.MULTILINE)):
                level, event = line.pop("level"), re.sub(r"\d+", "<n>", str(line.pop("event")))
                kinds.add(f"{level}: {event} ({', '.join(sorted(line))})")
        entries[part] = "\n".join(sorted(kinds))
    return entries


def _helps(convmlp: Convmlp) -> Entries:
    """The help of each command and of those below it, found by what the others list."""
    entries: Entries = {}
    waiting: list[tuple[str, ...]] = [()]
    for words in waiting:
        text = convmlp([*words, "--help"])
        entries[" ".join(("convmlp", *words))] = text
        waiting += [(*words, name) for name in _listed(text)]
    return _without_repetition(entries)


def _listed(text: str) -> list[str]:
    """The commands of a help text."""
    return re.findall(r"^│ ([a-z][a-z-]*) ", text, re.MULTILINE)


def _without_repetition(entries: Entries) -> Entries:
    """The parts of the service take the same settings, and so have the same help but for its first lines. `doctor` has
    the settings of `serve`, and exit statuses of its own."""
    seen: dict[str, tuple[str, str]] = {}
    short: Entries = {}
    for title, text in entries.items():
        head, _, options = text.partition("\noptions:\n")
        settings, mark, statuses = options.partition("\nExit status: ")
        known, known_statuses = seen.setdefault(settings or text, (title, statuses))
        ends = "" if statuses == known_statuses else f"\n{mark}{statuses}"
        short[title] = text if known == title else f"{head}\n… as `{known} --help`{ends}"
    return short


def _commands(convmlp: Convmlp, service: Service) -> Entries:
    words = {
        "png": "picture.png",
        "pdf": "no_picture.pdf",
        "rest": f"http://127.0.0.1:{service.http_port}",
        "grpc": f"grpc://127.0.0.1:{service.grpc_port}",
    }
    return {f"convmlp {command}": convmlp(command.format(**words).split()) for command in COMMANDS}


def _plain(text: str, folder: Path) -> str:
    return without_volatile(text.replace(str(folder), "<folder>").replace(str(ROOT), "<root>"))


def written(entries: Entries) -> str:
    """What a file of these entries holds."""
    return "\n".join(f"{RULE}{title}\n{text}\n" if title else f"{text}\n" for title, text in entries.items())


def read(path: Path) -> Entries:
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    if not text.startswith(RULE):
        return {"": text.removesuffix("\n")}
    entries = {}
    for part in f"\n{text}".split(f"\n{RULE}")[1:]:
        title, _, body = part.partition("\n")
        entries[title] = body.rstrip("\n")
    return entries


def differences(name: str, old: Entries, new: Entries) -> dict[str, str]:
    """A short unified diff of each entry that differs, by where it is."""
    found = {}
    for title in dict.fromkeys((*old, *new)):
        before, after = old.get(title), new.get(title)
        if before != after:
            lines = difflib.unified_diff(
                (before or "").splitlines(), (after or "").splitlines(), "recorded", "now", lineterm="", n=2
            )
            found[f"{name}: {title}" if title else name] = "\n".join(lines)
    return found
