"""The on-disk cache of compiled kernels: the keys of its files, and when a file is reused."""

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
    """Return the names of the files of compiled code."""
    return sorted(cache.rglob("*.nbc"))


def test_cached_kernels_of_dtypes_have_separate_files(tmp_path: Path) -> None:
    """File names do not depend on the order of compilation nor on other files."""
    compile_norm(Path(runtime.__file__).parent.parent, tmp_path, "float32", "bfloat16")
    assert sorted(path.name.partition("-")[0].split(".")[1][:12] for path in tmp_path.rglob("*.1.nbc")) == [
        "norm_float32",
        "norm_uint16_",
    ]
    assert not list(tmp_path.rglob("*.2.nbc"))


def test_a_change_in_a_helper_of_a_kernel_compiles_it_again(tmp_path: Path) -> None:
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


def test_kernels_that_cannot_be_cached_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the package nor any cache directory is writable."""
    for impl in (caching.CompileResultCacheImpl, caching.CodeLibraryCacheImpl):
        monkeypatch.setattr(impl, "_locator_classes", [])
    ops._entry.cache_clear()
    compiled.cache_clear()
    with pytest.raises(MachineError, match=r"the CPU kernels cannot be kept: .*: set NUMBA_CACHE_DIR"):
        ops.prepare(torch.float32)
