"""The on-disk cache of compiled kernels: what its files are named after, and when they are used again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numba.core import caching

import runtime
from runtime.errors import MachineError
from runtime.model import ops
from runtime.model.kernels.compiled import compiled

COMPILE = """if True:
    import sys, torch
    from runtime.model import ops
    from runtime.model.kernels import rowwise
    from runtime.model.kernels.compiled import compiled
    for dtype in sys.argv[1:]:
        compiled(rowwise.norm, getattr(torch, dtype))
    x = torch.tensor([[2.0, -2.0]])
    if "float32" in sys.argv:
        print(ops.norm(x, torch.ones(2), 0.0).tolist())
"""


def compile_norm(source: Path, cache: Path, *dtypes: str) -> str:
    """Compile the norm in a process that imports from ``source``; return what it prints."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", COMPILE, *dtypes]
    return subprocess.run(
        command, check=True, env=environment, cwd=source, text=True, stdout=subprocess.PIPE
    ).stdout.strip()


def kept(cache: Path) -> list[Path]:
    """Files of compiled code."""
    return sorted(cache.rglob("*.nbc"))


def test_what_is_kept_of_a_kernel_is_never_that_of_another_dtype(tmp_path: Path) -> None:
    """Whoever comes first: no file's name depends on what else is there."""
    compile_norm(Path(runtime.__file__).parent.parent, tmp_path, "float32", "bfloat16")
    assert sorted(path.name.partition("-")[0].split(".")[1][:12] for path in tmp_path.rglob("*.1.nbc")) == [
        "norm_float32",
        "norm_uint16_",
    ]
    assert not list(tmp_path.rglob("*.2.nbc"))


def test_a_change_in_what_a_kernel_calls_compiles_it_again(tmp_path: Path) -> None:
    """A helper's file is not the kernel's: here the conversion of a float32, which then doubles every element."""
    source, cache = tmp_path / "source", tmp_path / "cache"
    for package in ("runtime", "plans"):
        shutil.copytree(
            Path(runtime.__file__).parent.parent / package,
            source / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "demo"),
        )
    assert compile_norm(source, cache, "float32") == "[[1.0, -1.0]]"
    first = kept(cache)
    stamps = [path.stat().st_mtime_ns for path in first]
    assert compile_norm(source, cache, "float32")
    assert [path.stat().st_mtime_ns for path in kept(cache)] == stamps  # loaded
    helper = source / "runtime" / "model" / "kernels" / "elements.py"
    before, narrowing, after = helper.read_text().partition("def narrowed(")
    assert before.count("return value\n") == 1
    helper.write_text(before.replace("return value\n", "return builder.fadd(value, value)\n") + narrowing + after)
    assert compile_norm(source, cache, "float32") == "[[2.0, -2.0]]"
    assert set(kept(cache)) > set(first)


def test_kernels_that_cannot_be_kept_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where neither the package nor any cache directory can be written."""
    for impl in (caching.CompileResultCacheImpl, caching.CodeLibraryCacheImpl):
        monkeypatch.setattr(impl, "_locator_classes", [])
    ops._entry.cache_clear()
    compiled.cache_clear()
    with pytest.raises(MachineError, match=r"the CPU kernels cannot be kept: .*: set NUMBA_CACHE_DIR"):
        ops.prepare(torch.float32)
