"""How long the threads of a network wait for each other awake, once its layer is done.

OpenMP (libgomp, as in torch's wheels) lets them spin for about 3 ms and then sleep. Between the layers of a network
they wait for some microseconds; what is spun after the last one is taken from whoever decodes the next picture. With
two tenths of a millisecond a lone ConvMLP-S was answered in 0.84 to 0.88 times the time on two cores; with a tenth of
that its threads fall asleep between layers, and it took longer than before.
"""

from __future__ import annotations

import os

SPINS = 20_000
"""About two tenths of a millisecond."""


def spin_briefly() -> None:
    """Call before torch is imported. The operator's own GOMP_SPINCOUNT or OMP_WAIT_POLICY is left as it is."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
