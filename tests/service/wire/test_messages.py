"""The messages between front-ends and workers."""

from __future__ import annotations

from model.types import Geometry, QueryParams, Size
from service.wire.messages import BYTES_TOGETHER, JOBS_TOGETHER, Predict, gather_jobs


def job_of(number: int, nbytes: int) -> tuple[Predict, memoryview]:
    size = Size(1, nbytes // 3)
    job = Predict(number, "r", "model", "version", size.height, size.width, Geometry(size, size), QueryParams(), 10.0)
    return job, memoryview(bytes(nbytes))


def test_jobs_travel_together_up_to_both_bounds() -> None:
    """So many jobs, and so many bytes of inputs, are in one message, each with its own input; a larger one is alone."""
    large = 3 * (BYTES_TOGETHER // 6 + 1)
    jobs = [job_of(number, 3 * number) for number in range(1, JOBS_TOGETHER + 2)]
    jobs += [job_of(100, large), job_of(101, large), job_of(102, 2 * large)]
    gathered = gather_jobs(jobs)
    numbers = [[job.job for job in message.predicts] for message, _ in gathered]
    assert numbers == [[*range(1, JOBS_TOGETHER + 1)], [JOBS_TOGETHER + 1, 100], [101], [102]]
    for message, inputs in gathered:
        assert [len(pixels) for pixels in inputs] == [3 * job.width for job in message.predicts]
    assert gather_jobs([]) == []
