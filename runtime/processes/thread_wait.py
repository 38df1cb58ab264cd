"""How long the threads of a process keep their cores while they wait for each other."""

import os

SPINS = 3000
"""A tenth of a millisecond or less: longer than from one kernel to the next, and much shorter than the turn of another
program that has the core of a thread which is waited for. Left to itself libgomp spins a hundred times as long: where
something else runs on the machine too, decoding a small model on a CPU took two to four times as long as with this."""


def wait_briefly() -> None:
    """To be called before torch is imported, whose libgomp looks once; what the user has set stays."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
