"""The processes of the measured service: `convmlp rest` and `convmlp worker`, which record as well.

`python -m benchmarks.tail.parts PART FILE`: settings come from the environment; FILE takes the records at the end.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.tail.records import Collections, Records, write_records
from service.process import run_process
from service.settings import Settings
from service.worker.compute_libraries import configure_libraries


def _rest(settings: Settings, _: Records) -> int:
    from service.frontend.http_main import run_rest

    return run_rest(settings)


def _worker(settings: Settings, records: Records) -> int:
    configure_libraries()  # before torch is imported
    from benchmarks.tail.worker import serve

    async def main(stop: asyncio.Event) -> int:
        await serve(settings, records, stop)
        return 0

    return run_process("worker", settings, main)


PARTS = {"rest": _rest, "worker": _worker}


def main() -> None:
    part, file = sys.argv[1:]
    records = Records()
    Collections(part, records)
    status = PARTS[part](Settings(), records)
    write_records(Path(file), records)
    sys.exit(status)


if __name__ == "__main__":
    main()
