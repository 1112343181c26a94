"""Where the time of the slowest answers went, and tables of a measured load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.tail.measure import Answer, Load
from benchmarks.tail.records import Batch, Pause, Records

WORST = 10
LATEST = 4
"""Batches that are listed of those that ran before."""
STAGES = ("client", "before decoding", "decode", "queue", "infer", "reply")
"""Until the request is sent; until a thread decodes it, with the ways to the front-end and to the worker; decoding;
until its batch starts; its batch; until the answer is here."""
SLACK_S = 0.002
"""A batch is timed inside the time that Server-Timing has."""


@dataclass(frozen=True, slots=True)
class Story:
    """An answer, its batch and what happened meanwhile. `ms`: by stage. `before`: the batches in whose way it was."""

    answer: Answer
    ms: dict[str, float]
    batch: Batch
    before: Sequence[Batch]
    pauses: Sequence[Pause]


def stories(answers: Sequence[Answer], records: Records) -> list[Story]:
    """Of the answers whose batches were recorded, in their order."""
    batches = sorted(records.batches, key=lambda batch: batch.ended_s)
    ends = np.array([batch.ended_s for batch in batches])
    found = []
    for answer in answers:
        first, last = np.searchsorted(ends, (answer.sent_s, answer.ended_s))
        fitting = [batch for batch in batches[first:last] if _fits(batch, answer)]
        if fitting:
            infer_s = answer.stages["infer"] / 1000
            batch = min(fitting, key=lambda batch: abs(batch.seconds - infer_s))
            found.append(_story(answer, batch, batches, records.pauses))
    return found


def _fits(batch: Batch, answer: Answer) -> bool:
    return (
        batch.images == answer.images
        and batch.slot.startswith(answer.model)
        and batch.started_s - answer.stages["queue"] / 1000 > answer.sent_s - SLACK_S
        and abs(batch.seconds - answer.stages["infer"] / 1000) < SLACK_S + 0.1 * batch.seconds
    )


def _story(answer: Answer, batch: Batch, batches: Sequence[Batch], pauses: Sequence[Pause]) -> Story:
    stages = answer.stages
    queued_s = batch.started_s - stages["queue"] / 1000
    ms = {
        "client": (answer.sent_s - answer.due_s) * 1000,
        "before decoding": (queued_s - answer.sent_s) * 1000 - stages["decode"],
        "decode": stages["decode"],
        "queue": stages["queue"],
        "infer": batch.seconds * 1000,
        "reply": (answer.ended_s - batch.ended_s) * 1000,
    }
    before = [one for one in batches if one.started_s < batch.started_s and one.ended_s > queued_s and one is not batch]
    during = [one for one in pauses if one.started_s < answer.ended_s and one.ended_s > answer.sent_s]
    return Story(answer, ms, batch, before, during)


def load_line(name: str, load: Load) -> str:
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(load.statuses.items()))
    offered = f"offered {load.offered:.1f}/s, " if load.offered else ""
    latencies = ", ".join(f"p{percent} {load.percentile_ms(percent):.1f}" for percent in (50, 95, 99))
    return (
        f"{name}: {offered}answers {load.per_second:.1f}/s, {latencies} ms; "
        f"CPU outside batches {load.cpu_ms:.2f} ms a request ({statuses})"
    )


def stage_lines(found: Sequence[Story]) -> list[str]:
    """Percentiles by stage, and the mean of the slowest hundredth."""
    slowest = sorted(found, key=lambda story: -story.answer.ms)[: max(1, len(found) // 100)]
    rows = ["| ms | " + " | ".join(STAGES) + " | all |", "|---" + "|---:" * (len(STAGES) + 1) + "|"]
    for name, percent in (("p50", 50), ("p99", 99)):
        cells = [float(np.percentile([story.ms[stage] for story in found], percent)) for stage in STAGES]
        cells.append(float(np.percentile([story.answer.ms for story in found], percent)))
        rows.append(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    cells = [float(np.mean([story.ms[stage] for story in slowest])) for stage in STAGES]
    cells.append(float(np.mean([story.answer.ms for story in slowest])))
    rows.append("| mean of the slowest hundredth | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return rows


def worst_lines(found: Sequence[Story], began_s: float) -> list[str]:
    """The ten slowest answers: where their time went, what ran before, and what disturbed them."""
    head = ["at s", "model", "all", *STAGES, "batch", "CPU of infer", "faults", "switches", "ran before", "collector"]
    rows = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for story in sorted(found, key=lambda story: -story.answer.ms)[:WORST]:
        batch = story.batch
        cells = [
            f"{story.answer.due_s - began_s:.2f}",
            story.answer.model,
            f"{story.answer.ms:.0f}",
            *(f"{story.ms[stage]:.1f}" for stage in STAGES),
            f"{batch.images} on {batch.lanes}",
            f"{batch.cpu_s * 1000:.1f}",
            str(batch.faults),
            str(batch.switches),
            _before(story),
            ", ".join(f"{one.process} {one.seconds * 1000:.1f} ms" for one in story.pauses) or "-",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _before(story: Story) -> str:
    """The latest batches that ran while the answer's job waited."""
    latest = [f"{one.images} x {one.slot} {one.seconds * 1000:.0f} ms" for one in story.before[-LATEST:]]
    more = len(story.before) - len(latest)
    return ", ".join([f"{more} others", *latest] if more else latest) or "-"


def disturbance_lines(records: Records, load: Load) -> list[str]:
    """What was not the policy: the collector, page faults, and cores that others had, during a load."""
    from_s = load.began_s
    until_s = max((answer.ended_s for answer in load.answers), default=from_s)
    pauses = [one for one in records.pauses if from_s <= one.started_s < until_s]
    batches = [one for one in records.batches if from_s <= one.started_s < until_s and one.lanes == 1]
    if not batches:
        return []
    lost = [1 - one.cpu_s / one.seconds for one in batches]
    counts = Counter(one.process for one in pauses)
    collections = ", ".join(
        f"{process} {count} times, at most {max(one.seconds for one in pauses if one.process == process) * 1000:.1f} ms"
        for process, count in counts.items()
    )
    faults, switches = [one.faults for one in batches], [one.switches for one in batches]
    return [
        f"Collector: {collections or 'never'}. Of the batches on one lane: page faults {_spread(faults)}, involuntary "
        f"context switches {_spread(switches)}; without a core for {_spread(lost, 100)} % of their time."
    ]


def _spread(values: Sequence[float], factor: float = 1.0) -> str:
    half, most = np.percentile(values, (50, 99)) * factor
    return f"p50 {half:.0f}, p99 {most:.0f}"
