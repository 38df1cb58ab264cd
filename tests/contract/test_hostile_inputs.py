"""Hostile arguments, inventories, configs, device maps and plans end with a documented exit code, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.hostile_inputs import KINDS

ROOT = Path(__file__).parents[2]
CASES = {"arguments": 300, "inventory": 200, "config": 200, "device_map": 100, "plan": 150}
SEED = 14


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_inputs_end_with_a_documented_exit_code(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contract.hostile_inputs", kind, str(SEED), str(CASES[kind]), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *findings, last = done.stdout.splitlines()
    assert findings == []
    codes = json.loads(last)["codes"]
    assert sum(codes.values()) == CASES[kind]
    assert codes["2"] > CASES[kind] / 4
    assert codes["0"] > 0


HOSTILE_LINES = (
    ("planner", "build", "--gpus", "inventory.yaml", "--tree", "depth=" + "9" * 5000),
    ("planner", "build", "--gpus", "inventory.yaml", "--solver-limit", "nan"),
    ("planner", "build", "--gpus", "/dev/zero"),
    ("planner", "build", "--gpus", "\udcff"),
    ("planner", "show", "x" * 5000),
    ("planner", "scan", "/dev/full"),
    ("planner", "check", "/proc/self/mem"),
    ("planner", "\x1b[31m"),
    ("runtime", "run", "x" * 5000, "--prompt-ids", "1"),
    ("runtime", "run", "plans/demo", "--seed", "9" * 5000),
    ("runtime", "verify", "/proc/self/fd/0"),
    ("runtime", "bench", "plans/demo", "--prompt-tokens", "9" * 18),
)


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=[" ".join(line)[:40] for line in HOSTILE_LINES])
def test_a_hostile_command_line_is_refused_in_a_process_of_its_own(line: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *line], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode in ((2,) if line[0] == "planner" else (2, 4)), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert max(map(len, done.stderr.splitlines())) < 5000
