"""One /analyze compared with /classify, /detect and /segment of the same picture: latency and CPU, interleaved.

    python -m benchmarks.analyze [--megapixels 0.14,2,12] [FLAGS OF convmlp serve]

`latency`: of /analyze, divided by that of the slowest of the three, which are sent one after the other to an idle
service. `CPU`: of all its processes, divided by what the three take together; `front-end` has that of decoding and
encoding alone. Each is the median over the rounds. A device that computes the networks side by side may answer as soon
as the slowest is done. On a CPU all cores work for each network, so the latency is bounded by `sum`: the seconds that
the three networks take, divided by the slowest latency.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import math
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import PIL.Image
import psutil

from model.reference import REFERENCE_PICTURE
from model.types import Task
from tests.e2e.convmlp_process import RunningService, running_service

PATHS = ("/analyze?mask_format=none", "/classify", "/detect?mask_format=none", "/segment?mask_format=none")
"""Without masks, whose encoding is the same work in both."""
WARM_UP = 5
QUALITY = 90


@dataclass(frozen=True, slots=True)
class Round:
    """Means of a round: seconds and CPU seconds of a request, the front-end's part of the latter, and the network's
    seconds; by path."""

    latency_s: dict[str, float]
    cpu_s: dict[str, float]
    front_end_s: dict[str, float]
    infer_s: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analyze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", default="0.14,2,12", help="sizes of the JPEG (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=10, help="of each kind in a round (default: %(default)s)")
    arguments, flags = parser.parse_known_args()
    print("| megapixels | slowest alone, ms | /analyze, ms | latency | CPU | front-end | sum |")
    print("|---|---|---|---|---|---|---|")
    with running_service(*flags) as service, connection_to(service.url) as connection:
        for text in arguments.megapixels.split(","):
            picture = scaled_picture(float(text))
            for _ in range(WARM_UP):
                for path in PATHS:
                    _answer(connection, path, picture)
            rounds = [_round(service, connection, picture, arguments.requests) for _ in range(arguments.rounds)]
            print(_row(text, rounds), flush=True)


def scaled_picture(megapixels: float) -> bytes:
    """The reference picture as a JPEG of so many pixels."""
    picture = PIL.Image.open(REFERENCE_PICTURE).convert("RGB")
    scale = math.sqrt(megapixels * 1e6 / (picture.width * picture.height))
    file = io.BytesIO()
    picture.resize((round(picture.width * scale), round(picture.height * scale))).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


@contextlib.contextmanager
def connection_to(url: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    try:
        yield connection
    finally:
        connection.close()


def _answer(connection: http.client.HTTPConnection, path: str, picture: bytes) -> float:
    """Send a picture; the seconds of its batch, of several the longest."""
    connection.request("POST", path, picture)
    response = connection.getresponse()
    body = response.read()
    if response.status != http.HTTPStatus.OK:
        raise SystemExit(f"{path}: {response.status} {body[:200]!r}")
    (infer_ms,) = re.findall(r"infer;dur=([\d.]+)", response.headers["Server-Timing"])
    return float(infer_ms) / 1000


def _round(service: RunningService, connection: http.client.HTTPConnection, picture: bytes, requests: int) -> Round:
    processes = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]
    front_ends = [psutil.Process(service.pid_of(part)) for part in _parts(service) if part.startswith("rest")]
    found = Round({}, {}, {}, {})
    for path in PATHS:
        cpu_s, front_end_s, started_s = _cpu_s(processes), _cpu_s(front_ends), time.perf_counter()
        infer_s = [_answer(connection, path, picture) for _ in range(requests)]
        found.latency_s[path] = (time.perf_counter() - started_s) / requests
        found.cpu_s[path] = (_cpu_s(processes) - cpu_s) / requests
        found.front_end_s[path] = (_cpu_s(front_ends) - front_end_s) / requests
        found.infer_s[path] = statistics.median(infer_s)
    return found


def _parts(service: RunningService) -> set[str]:
    return {line["part"] for line in service.lines if line["event"] == "started"}


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def _row(megapixels: str, rounds: Sequence[Round]) -> str:
    together, *apart = PATHS
    assert len(apart) == len(Task)
    slowest_s = [max(one.latency_s[path] for path in apart) for one in rounds]
    ratios = {
        "latency": [one.latency_s[together] / slowest for one, slowest in zip(rounds, slowest_s, strict=True)],
        "cpu": [one.cpu_s[together] / sum(one.cpu_s[path] for path in apart) for one in rounds],
        "front-end": [one.front_end_s[together] / sum(one.front_end_s[path] for path in apart) for one in rounds],
        "sum": [
            sum(one.infer_s[path] for path in apart) / slowest for one, slowest in zip(rounds, slowest_s, strict=True)
        ],
    }
    cells = [f"{statistics.median(slowest_s) * 1000:.1f}"]
    cells.append(f"{statistics.median(one.latency_s[together] for one in rounds) * 1000:.1f}")
    cells += [f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]" for values in ratios.values()]
    return f"| {megapixels} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
