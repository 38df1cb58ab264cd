"""Spin time of OpenMP threads: how long a thread that waits for the others of its process keeps its core busy."""

import os

SPINS = 3000
"""Iterations of libgomp's wait loop, a tenth of a millisecond or less: longer than the gap between two kernels, and
much shorter than the time slice of another program that holds the core of a thread which is waited for. libgomp's own
default is a hundred times as long; with it, decoding a small model on a CPU beside other programs took two to four
times as long."""


def limit_spinning() -> None:
    """Set GOMP_SPINCOUNT, unless the user has set it or OMP_WAIT_POLICY; to be called before torch is imported."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
