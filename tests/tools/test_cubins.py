"""Compilation of GPU kernels without a GPU; ``tools/cubins.py`` compiles them for every GPU of the catalogue."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "cubins.py"


@pytest.mark.parametrize("capability", [80, 86, 89, 90])
def test_every_kernel_compiles_within_what_a_program_may_have(capability: int, tmp_path: Path) -> None:
    """In a process of its own, without the interpreter that the tests set."""
    rows = compiled(tmp_path, "--capability", str(capability))
    assert {"| `attend_kernel`", "| `product_kernel`", "| `grouped_kernel`"} <= {row[0] for row in rows}


@pytest.mark.parametrize(
    ("capability", "case", "kernels"), [(100, "plain, int8", 1), (120, "product, int8, 60 rows", 1), (100, "draw", 12)]
)
def test_kernels_compile_for_newer_tensor_cores(capability: int, case: str, kernels: int, tmp_path: Path) -> None:
    assert len(compiled(tmp_path, "--capability", str(capability), "--only", case)) == kernels


def compiled(directory: Path, *options: str) -> list[list[str]]:
    """Return the rows of the tool's table; each kernel spills nothing and takes no more than a program may have."""
    rows = [line.split(" | ") for line in run(directory, str(TOOL), *options).splitlines()[2:]]
    for *_, taken in rows:
        shared, registers, spilled = (int(word) for word in taken.removesuffix(" |").split("/"))
        assert (spilled, 0 < registers <= 255) == (0, True)
        assert shared <= 227
    return rows


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
