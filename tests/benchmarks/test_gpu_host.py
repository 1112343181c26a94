from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import uvloop

from benchmarks.gpu_host import OURS, OUTSIDE, PARTS, TOTAL, Turn, by_turns, started, table
from benchmarks.material import pictures
from benchmarks.servers import REPOSITORY


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is twice as slow in one round moves no ratio."""
    turns = [
        Turn(0, OURS, 200.0, {OUTSIDE: 0.5, TOTAL: 2.0, "worker loop": 0.1}),
        Turn(0, "v1", 100.0, {OUTSIDE: 1.0, TOTAL: 3.0, "worker loop": 0.2}),
        Turn(1, OURS, 100.0, {OUTSIDE: 1.0, TOTAL: 4.0, "worker loop": 0.2}),
        Turn(1, "v1", 50.0, {OUTSIDE: 2.0, TOTAL: 6.0, "worker loop": 0.4}),
    ]
    *_, ratios = table(turns, "v1")
    assert ratios == ("this tree / v1: images/s 2.00 [2.00 to 2.00], CPU an image outside decoding 0.50 [0.50 to 0.50]")


@pytest.mark.serial
def test_every_process_and_thread_is_measured(tmp_path: Path) -> None:
    """Real pictures are answered by a real front-end and worker; each kind of thread spends time."""
    before = psutil.Process().children(recursive=True)
    with started({OURS: REPOSITORY}, [], tmp_path, 0.1) as servers:
        (turn,) = uvloop.run(by_turns(0, servers, pictures(None)[:2], 2, 1))
    assert turn.images_per_s > 0
    assert all(turn.cpu_ms[part] > 0 for part in PARTS)
    assert turn.cpu_ms[TOTAL] == pytest.approx(sum(turn.cpu_ms[part] for part in PARTS))
    assert psutil.Process().children(recursive=True) == before
