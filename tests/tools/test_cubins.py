"""Compilation of GPU kernels without a GPU, for two kinds of tensor cores; ``tools/cubins.py`` has all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "cubins.py"


@pytest.mark.parametrize(
    ("capability", "case", "kernels"),
    [
        (80, "attend, tree, fp8", 2),
        (90, "int4-g128, 60 rows", 2),
        (90, "draw", 12),
        (100, "plain, int8", 2),
        (90, "heads, int8", 1),
    ],
)
def test_kernels_compile_within_what_a_program_may_have(
    capability: int, case: str, kernels: int, tmp_path: Path
) -> None:
    """In a process of its own, without the interpreter that the tests set."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(TOOL.parents[1])}
    command = [sys.executable, str(TOOL), "--capability", str(capability), "--only", case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == kernels
    for *_, taken in rows:
        shared, registers, spilled = (int(word) for word in taken.removesuffix(" |").split("/"))
        assert (spilled, 0 < registers <= 255) == (0, True)
        assert shared <= 227
