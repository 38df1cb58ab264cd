"""The spin count of libgomp, as it reports it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.processes.thread_wait import SPINS
from tests.runtime.small import compiled_plan

RUN = ("-m", "runtime", "run", "{}", "--prompt-ids", "1", "--max-new-tokens", "1")


@pytest.mark.parametrize(
    ("arguments", "user_environment", "spins"),
    [
        (("-c", "from runtime import Engine"), {}, SPINS),
        (("-c", "from runtime.engine import Engine"), {}, SPINS),
        (RUN, {}, SPINS),
        (RUN, {"GOMP_SPINCOUNT": "77"}, 77),
        (("-c", "from runtime import Engine"), {"OMP_WAIT_POLICY": "passive"}, 0),
    ],
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(
    arguments: tuple[str, ...], user_environment: dict[str, str], spins: int, tmp_path: Path
) -> None:
    directory, _ = compiled_plan(tmp_path)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, *(argument.format(directory) for argument in arguments)],
        env=environment | user_environment | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
