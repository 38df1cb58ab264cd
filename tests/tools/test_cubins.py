"""Compilation of GPU kernels without a GPU, for two kinds of tensor cores; ``tools/cubins.py`` has all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "cubins.py"


@pytest.mark.parametrize(
    ("capability", "case", "kernels"),
    [
        (80, "attend, tree, fp8", 2),
        (90, "int4-g128, 60 rows", 1),
        (90, "draw", 12),
        (100, "plain, int8", 1),
        (90, "heads, int8", 1),
        (120, "product, int8, 60 rows", 1),
        (80, "gate and up, int8", 1),
    ],
)
def test_kernels_compile_within_what_a_program_may_have(
    capability: int, case: str, kernels: int, tmp_path: Path
) -> None:
    """In a process of its own, without the interpreter that the tests set."""
    printed = run(tmp_path, str(TOOL), "--capability", str(capability), "--only", case)
    rows = [line.split(" | ") for line in printed.splitlines()[2:]]
    assert len(rows) == kernels
    for *_, taken in rows:
        shared, registers, spilled = (int(word) for word in taken.removesuffix(" |").split("/"))
        assert (spilled, 0 < registers <= 255) == (0, True)
        assert shared <= 227


PTX = """
import sys
import cubins, torch, triton
for own in cubins.launches(torch.bfloat16, sys.argv[1]):
    triton.runtime.driver.set_active(cubins.Target(90))
    print(own.kernel.warmup(*own.operands, grid=(1,), **own.options).asm["ptx"])
"""


@pytest.mark.parametrize("case", ["product, int4-g128, 1 rows", "product, int8, 60 rows"])
def test_the_last_program_reads_parts_after_all_others_have_released_theirs(case: str, tmp_path: Path) -> None:
    """Stores, a barrier of the program, one thread's acquire and release at the scope of the GPU, a barrier, loads past
    the first cache: by PTX's memory model what the others stored is read.
    """
    ptx = run(tmp_path, "-c", PTX, case)
    words = r"st\.global\S*b32|bar\.sync|atom\.global\.gpu\.acq_rel|ld\.global\.cg"
    order = [word.split(".v4")[0] for word in re.findall(words, ptx)]
    counted = order.index("atom.global.gpu.acq_rel")
    assert (order.count("atom.global.gpu.acq_rel"), order[counted - 1], order[counted + 1]) == (1, *["bar.sync"] * 2)
    assert order[counted - 2].startswith("st.global")
    assert order[counted + 2] == "ld.global.cg"
    assert "ld.global.cg" not in order[:counted]


def run(directory: Path, *command: str) -> str:
    """Return what Python prints, without the interpreter that the tests set; Triton's cache is in ``directory``."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(TOOL.parents[1]), str(TOOL.parent)])
    environment |= {"TRITON_CACHE_DIR": str(directory), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
