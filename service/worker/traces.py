"""What a worker tells of batches and jobs, where a request's trace is recorded.

A batch is a trace of its own, for it belongs to several requests: it is linked to them, and their time on the device
is linked to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import ConvMLPError
from service.spans import Span, Tracing
from service.worker.queue import Done, Job
from service.worker.runner import Runner

OUT_OF_MEMORY = "out-of-device-memory"


def tell_batch(
    tracing: Tracing, runner: Runner, jobs: Sequence[Job], started_s: float, ended_s: float, error: str
) -> Span:
    """The span of jobs that ran together; `error`: what became of them where they have no output."""
    shape = jobs[0].shape
    return tracing.joint(
        "batch",
        [job.span for job in jobs],
        started_s,
        ended_s,
        {
            "convmlp.model": shape.model,
            "convmlp.batch.size": len(jobs),
            "convmlp.input.height": shape.height,
            "convmlp.input.width": shape.width,
            "convmlp.device": runner.device,
            "convmlp.precision": runner.precision(shape.slot),
        },
        error,
    )


def tell_job(job: Job, done: Done, batch: Span) -> None:
    """The spans of a job's stages, in its request's trace; `batch`: the one that it ran in, if it ran."""
    error = done.result.code if isinstance(done.result, ConvMLPError) else ""
    taken_s = job.enqueued_s + done.queue_s
    ran = done.infer_s > 0
    job.span.record("queue", job.enqueued_s, taken_s, error="" if ran else error)
    if ran:
        job.span.record("infer", taken_s, taken_s + done.infer_s, error=error, link=batch)
