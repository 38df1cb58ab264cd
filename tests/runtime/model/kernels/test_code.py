"""Machine code on disk: the names of its files, when one is loaded, and what is never loaded."""

import errno
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import runtime
from runtime.errors import MachineError
from runtime.model import ops
from runtime.model.kernels import code

ROOT = Path(runtime.__file__).parent.parent
RUN = """if True:
    import sys
    from plans.deferred import unused_deferred
    with unused_deferred():  # half of the time of torch's import
        import torch
        from runtime.model import ops
    from runtime.model.kernels import code
    for dtype in sys.argv[1:3]:
        code.address("norm", getattr(torch, dtype))
    x = torch.tensor([[2.0, -2.0]])
    if "float32" in sys.argv:
        print(ops.norm(x, torch.ones(2), 0.0).tolist(), "numba" in sys.modules)
    if "beside numba" in sys.argv:  # an error of somebody else's function does not meet what stands in for its run time
        import numba
        @numba.njit
        def fails(x):
            if x > 1:
                raise ValueError(x)
            return [x]
        assert fails(1) == [1]
        try:
            fails(2)
        except ValueError as error:
            print(error)
"""


def start_norm(cache: Path, *dtypes: str, source: Path = ROOT) -> "subprocess.Popen[str]":
    """Load or compile the norm in a process that imports from ``source``."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", RUN, *dtypes]
    return subprocess.Popen(command, env=environment, cwd=source, text=True, stdout=subprocess.PIPE)


def run_norm(cache: Path, *dtypes: str, source: Path = ROOT) -> str:
    """Load or compile the norm like `start_norm`; return what the process prints."""
    process = start_norm(cache, *dtypes, source=source)
    output, _ = process.communicate()
    assert process.returncode == 0
    return output.strip()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Start three processes at once that want a kernel; return the directory of its code, and what they print."""
    cache = tmp_path_factory.mktemp("kernels")
    processes = [start_norm(cache, "float32") for _ in range(3)]
    return cache, sorted(process.communicate()[0].strip() for process in processes)


def test_of_processes_that_start_at_once_one_compiles(compiled: tuple[Path, list[str]]) -> None:
    assert compiled[1] == ["[[1.0, -1.0]] False", "[[1.0, -1.0]] False", "[[1.0, -1.0]] True"]


def test_a_kernel_and_a_dtype_have_a_file_which_is_loaded_without_numba(
    compiled: tuple[Path, list[str]], tmp_path: Path
) -> None:
    cache = shutil.copytree(compiled[0], tmp_path / "cache")
    assert run_norm(cache, "float32", "bfloat16") == "[[1.0, -1.0]] True"
    files = sorted(cache.iterdir())
    assert [file.name.rpartition("_")[0].rpartition("_")[0] for file in files] == ["norm_bfloat16", "norm_float32"]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert run_norm(cache, "float32", "bfloat16", "beside numba") == "[[1.0, -1.0]] False\n2"
    assert [file.stat().st_mtime_ns for file in sorted(cache.iterdir())] == stamps


def test_a_file_that_is_not_as_it_was_written_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    content = bytes(range(256)) * 9
    whole = code._head("cfunc.norm", content) + content
    assert code._read("norm.o") is None
    for size in (*range(120), len(whole) - 1):
        (tmp_path / "norm.o").write_bytes(whole[:size])
        assert code._read("norm.o") is None
    for position in (0, 63, 64, 65, 70, 80, 1000, len(whole) - 1):
        (tmp_path / "norm.o").write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert code._read("norm.o") is None
    (tmp_path / "norm.o").write_bytes(whole)
    assert code._read("norm.o") == ("cfunc.norm", content)


def test_a_lock_is_held_until_its_end_and_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a lock whose process was killed is there, without a lock."""
    lock = tmp_path / "lock"
    lock.touch()
    monkeypatch.setattr(code, "LOCK_S", 0.0)
    with lock.open("ab") as other:
        with code._alone(lock):
            assert not code._locked(other)
        assert code._locked(other)
        assert not lock.exists()
    with lock.open("ab") as stopped:
        assert code._locked(stopped)
        with code._alone(lock), lock.open("ab") as other:
            assert not code._locked(other), "the stopped process has it still"


def test_a_change_in_a_helper_of_a_kernel_compiles_it_again(compiled: tuple[Path, list[str]], tmp_path: Path) -> None:
    """A helper's file is not the kernel's: here the conversion of a float32, which then doubles every element."""
    source, cache = tmp_path / "source", shutil.copytree(compiled[0], tmp_path / "cache")
    for package in ("runtime", "plans"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "demo")
        )
    assert run_norm(cache, "float32", source=source) == "[[1.0, -1.0]] False", "a copy of the sources has the same code"
    first = set(cache.iterdir())
    helper = source / "runtime" / "model" / "kernels" / "elements.py"
    before, narrowing, after = helper.read_text().partition("def narrowed(")
    assert before.count("return value\n") == 1
    helper.write_text(before.replace("return value\n", "return builder.fadd(value, value)\n") + narrowing + after)
    assert run_norm(cache, "float32", source=source) == "[[2.0, -2.0]] True"
    assert set(cache.iterdir()) > first


def test_each_kernel_that_is_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three kernels one is kept already; that of int8 caches is not needed."""
    told: list[str] = []
    monkeypatch.setattr(
        code,
        "KERNELS",
        {"norm": "rowwise", "gated": "rowwise", "top": "logits", "attend_int8": "", "attend_float8": ""},
    )
    monkeypatch.setattr(code, "is_kept", lambda kernel, dtype: kernel == "gated")
    monkeypatch.setattr(ops, "_entry", lambda kernel, dtype: told.append(kernel))
    ops.prepare(torch.float32, codes=False, report=told.append)
    first, second = (
        f"preparing the CPU kernels (compiling {number} of 2, once for this processor and dtype)" for number in (1, 2)
    )
    assert told == [first, "norm", "gated", second, "top"]


def test_a_kernel_is_kept_once_it_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not code.is_kept("norm", torch.float32)
    (tmp_path / code._name("norm", torch.float32)).touch()
    assert code.is_kept("norm", torch.float32)
    assert not code.is_kept("norm", torch.bfloat16)


def test_kernels_that_cannot_be_kept_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "inside"))
    ops._entry.cache_clear()
    code.address.cache_clear()
    with pytest.raises(MachineError, match=r"the CPU kernels cannot be kept: .*: set NUMBA_CACHE_DIR"):
        ops.prepare(torch.float32, codes=False)


def test_a_full_disk_names_the_kernel_and_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(importlib, "import_module", lambda name: Mock(object_code=lambda kernel, dtype: ("a", b"code")))
    writes = Path.write_bytes

    def fills_the_disk(file: Path, content: bytes) -> None:
        writes(file, content[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fills_the_disk)
    ops._entry.cache_clear()
    code.address.cache_clear()
    with pytest.raises(
        MachineError, match=rf"cannot be kept: .*No space left on device: '{tmp_path}/.*\.o': set NUMBA"
    ):
        ops.prepare(torch.float32, codes=False)
    assert list(tmp_path.iterdir()) == []
