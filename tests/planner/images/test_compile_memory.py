"""Memory of a compile: bounded, however large the model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner.families import inputs_of, load_base
from plans.artifact import IMAGES_FILE
from tests.plan_factory import group, make_device, make_plan, write_base
from tests.planner.images.two_stages import save

MEMORY = """
import sys
from pathlib import Path
from planner.images.compile import compile_plan

def peak_bytes():  # of this address space; ru_maxrss would start at the parent's size at the fork
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before = peak_bytes()
report = compile_plan(Path(sys.argv[1]), Path(sys.argv[2]), None)
print(report.written_bytes, peak_bytes() - before)
"""


def test_memory_does_not_depend_on_the_model(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    base_dir = tmp_path / "base"
    sizes = {"hidden_size": 1024, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128, "num_layers": 1}
    rows = int(pytestconfig.getoption("--sparse-gigabytes") * 1e9) // (2 * 4 * 1024)
    sizes |= {"intermediate_size": 4096, "vocab_size": rows - 8_000}
    sparse_base(base_dir, sizes)
    base = load_base(base_dir)
    devices = [make_device(name, memory_bytes=1 << 40) for name in "ab"]
    groups = [group(base.model, ["a", "b"], 1)]
    plan = make_plan(base.model, groups, inputs=inputs_of(base, None), devices=devices, dtype="bfloat16")
    directory = save(plan, tmp_path / "plan")
    command = [sys.executable, "-c", MEMORY, str(directory), str(base_dir)]
    written, grown = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert written > 140 << 20
    assert 8 << 20 <= grown < 64 << 20, f"{grown / 2**20:.0f} MiB"
    assert (directory / IMAGES_FILE).exists()


def sparse_base(directory: Path, sizes: dict[str, int]) -> None:
    """Write a checkpoint of zeros that takes no disk space: a header, and a sparse hole for the data."""
    tiny = write_base(directory, **(sizes | {"vocab_size": 1, "intermediate_size": 4096}))  # type: ignore[arg-type]
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": sizes["vocab_size"]}))
    table, offset = {}, 0
    for name, tensor in tiny.items():
        table_like = name in {"model.embed_tokens.weight", "lm_head.weight"}
        shape = [sizes["vocab_size"], sizes["hidden_size"]] if table_like else list(tensor.shape)
        nbytes = 4 * int(np.prod(shape))
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(table).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
