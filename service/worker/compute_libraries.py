"""Settings of the libraries that compute on a CPU. They read their environment once, so call before torch is imported.

What the operator set in the environment is left as it is.
"""

from __future__ import annotations

import os

SPINS = 20_000
"""About 0.2 ms."""


def configure_libraries() -> None:
    """Set how OpenMP waits and how MKL sums.

    OpenMP (libgomp, as in torch's wheels) lets its threads spin for about 3 ms after a layer of a network before they
    sleep. Between two layers they wait for some microseconds only; the spinning after the last layer takes time from
    the threads that decode the next picture. With 0.2 ms a lone ConvMLP-S took 0.84 to 0.88 times as long on two cores;
    with 0.02 ms its threads fall asleep between layers, and it took longer than without the setting.

    MKL, which multiplies the matrices of `exact`, gives other last bits on another number of threads. In this mode it
    does not, so that an answer does not depend on how many cores were free. No difference in speed was measured.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
