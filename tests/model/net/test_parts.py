"""Parts of a picture on several threads of the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from model.net.parts import FEWEST_PARTS, of_each

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads of the CPU this thread may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, FEWEST_PARTS - 1, FEWEST_PARTS, 100])
@pytest.mark.usefixtures("threads")
def test_results_are_in_order(count: int) -> None:
    """The results are those of the parts, in their order, on any number of threads."""
    assert of_each(list(range(count)), lambda part: part * part, CPU) == [part * part for part in range(count)]


def test_each_thread_has_whole_parts(threads: int) -> None:
    """At most as many threads work as may be used, and none divides an operation further. Afterwards the caller, and
    threads that begin then, may use as many as before."""
    found = of_each(list(range(100)), lambda _: (threading.get_ident(), torch.get_num_threads()), CPU)
    assert len({ident for ident, _ in found}) <= threads
    assert {number for _, number in found} == {1}
    with ThreadPoolExecutor(1) as later:
        assert [torch.get_num_threads(), later.submit(torch.get_num_threads).result()] == [threads, threads]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("inference", [False, True])
def test_the_caller_s_mode_holds(inference: bool) -> None:
    """Parts are worked on in the caller's mode: tensors that were made in inference mode can be written there alone."""
    with torch.inference_mode(inference):
        written = torch.zeros(100)

        def write(part: int) -> Tensor:
            assert torch.is_inference_mode_enabled() is inference
            return written[part].add_(part)

        of_each(list(range(100)), write, CPU)
    assert written.tolist() == list(range(100))


@pytest.mark.usefixtures("threads")
def test_an_error_reaches_the_caller() -> None:
    """An error of a part is raised: torch's of too little memory, which halves a batch."""

    def fail(part: int) -> int:
        if part == 50:
            raise RuntimeError("no memory")
        return part

    with pytest.raises(RuntimeError, match="no memory"):
        of_each(list(range(100)), fail, CPU)
