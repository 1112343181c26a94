"""How long OpenMP's threads spin after a layer of a network before they sleep.

OpenMP (libgomp, as in torch's wheels) lets them spin for about 3 ms. Between two layers they wait for some microseconds
only; the spinning after the last layer takes time from the threads that decode the next picture. With 0.2 ms a lone
ConvMLP-S took 0.84 to 0.88 times as long on two cores; with 0.02 ms its threads fall asleep between layers, and it took
longer than without the setting.
"""

from __future__ import annotations

import os

SPINS = 20_000
"""About 0.2 ms."""


def spin_briefly() -> None:
    """Call before torch is imported. The operator's own GOMP_SPINCOUNT or OMP_WAIT_POLICY is left as it is."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
