"""A process that scores, as LocalPool starts it: `python -m service.batch.scoring_process FILE-DESCRIPTOR`.

The plan and the tasks arrive at the descriptor, and the events leave there. The process ends when the other end is
closed, whatever its threads do.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from queue import SimpleQueue

from model.errors import ConvMLPError
from service.batch.pool import Event, Failed, Finished, Loaded, Scored, Starting, Task
from service.batch.score import Scorer


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    try:
        scorer = Scorer(connection.recv())
    except ConvMLPError as error:
        connection.send(Failed(error.code, error.detail))
        return
    except ModuleNotFoundError as error:
        connection.send(
            Failed("package-missing", f"{error.name} is not installed; install this package's extra `worker`")
        )
        return
    tasks: SimpleQueue[Task] = SimpleQueue()
    sending = threading.Lock()

    def send(event: Event) -> None:
        with sending:
            try:
                connection.send(event)
            except OSError:
                os._exit(0)  # the command has ended

    def score_tasks() -> None:
        try:
            while True:
                for event in events_of(scorer, tasks.get()):
                    send(event)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            # A thread that is missing would not be noticed.
            os._exit(1)

    for _ in range(scorer.threads):
        threading.Thread(target=score_tasks, daemon=True).start()
    send(Loaded(scorer.precisions, scorer.device, scorer.threads))
    while True:
        try:
            tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


def events_of(scorer: Scorer, task: Task) -> Iterator[Event]:
    """Score a task. An error that is of no picture is its last event."""
    try:
        samples = task.unit.samples(task.done)
        if task.careful:
            for sample in samples:
                yield Starting(task.number, sample.id)
                yield from (Scored(task.number, rows) for rows in scorer.score(iter((sample,)), 1))
        else:
            yield from (Scored(task.number, rows) for rows in scorer.score(samples))
    except ConvMLPError as error:
        yield Failed(error.code, error.detail)
    else:
        yield Finished(task.number)


if __name__ == "__main__":
    main()
