"""What libgomp says that it has read."""

import os
import subprocess
import sys

import pytest

from runtime.processes.thread_wait import SPINS


@pytest.mark.parametrize(
    ("arguments", "users", "spins"),
    [
        (("-c", "from runtime import Engine"), {}, SPINS),
        (("-m", "runtime", "run", "--help"), {}, SPINS),
        (("-m", "runtime", "run", "--help"), {"GOMP_SPINCOUNT": "77"}, 77),
        (("-c", "from runtime import Engine"), {"OMP_WAIT_POLICY": "passive"}, 0),
    ],
)
def test_threads_wait_briefly_unless_the_user_wants_otherwise(
    arguments: tuple[str, ...], users: dict[str, str], spins: int
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, *arguments], env=kept | users | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
