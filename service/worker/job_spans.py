"""The spans of jobs and batches, where they are traced."""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import ConvMLPError
from service.errors import Internal
from service.observability.tracing import Span, Tracing
from service.worker.runner import OutOfDeviceMemory, Runner
from service.worker.types import Job, JobResult

OUT_OF_MEMORY = "out-of-device-memory"
"""Error code of a batch's span."""


def batch_span(
    tracing: Tracing, runner: Runner, jobs: Sequence[Job], started_s: float, ended_s: float, result: object
) -> Span:
    """The span of a batch. It is a trace of its own, since a batch serves several requests; it is linked to those that
    are traced. `result`: its outputs, or the exception that it raised."""
    error = ""
    if isinstance(result, Exception):
        error = OUT_OF_MEMORY if isinstance(result, OutOfDeviceMemory) else Internal.code
    shape = jobs[0].shape
    return tracing.batch_span(
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


def trace_job(job: Job, result: JobResult, batch: Span) -> None:
    """The spans of a job's stages, in its request's trace, linked to the batch that it ran in."""
    error = result.result.code if isinstance(result.result, ConvMLPError) else ""
    taken_s = job.enqueued_s + result.queue_s
    ran = result.infer_s > 0
    job.span.record("queue", job.enqueued_s, taken_s, error="" if ran else error)
    if ran:
        job.span.record("infer", taken_s, taken_s + result.infer_s, error=error, link=batch)
