"""Decoding does not grow the memory of the process."""

import ctypes
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from runtime.engine import Engine
from tests.runtime.small import compiled_plan

pytestmark = pytest.mark.usefixtures("one_core")


class Mallinfo(ctypes.Structure):
    """glibc's ``mallinfo2``."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in
                     ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                      "keepcost"))  # fmt: skip


def held_bytes() -> int:
    """Return the bytes allocated by malloc and not freed; excludes Python's own small objects."""
    gc.collect()
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = Mallinfo
    info = mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


@pytest.mark.parametrize("draft", [True, False])
def test_allocated_bytes_are_the_same_after_step_300_as_after_step_3(draft: bool, tmp_path: Path) -> None:
    """In a process of its own: one of other tests has their threads, caches and freed memory."""
    directory, _ = compiled_plan(tmp_path, context=1600)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        held, resident = pool.submit(_measured, directory, draft).result()
    # Lists of tokens may grow. A cache row or a logit leaked per step would exceed this.
    assert abs(held[1] - held[0]) < 64 << 10, held
    assert resident[1] - resident[0] <= 256 << 10, "resident bytes may vary by pages that the allocator keeps"


def _measured(directory: Path, draft: bool) -> tuple[list[int], list[int]]:
    with Engine.open(directory) as engine:
        _held_at_steps(engine, draft)  # warm up: libraries cache data per shape
        return _held_at_steps(engine, draft)


def _held_at_steps(engine: Engine, draft: bool) -> tuple[list[int], list[int]]:
    """Return allocated bytes and resident bytes, each after step 3 and after step 300."""
    held, resident, process = [], [], psutil.Process()
    with closing(engine.stream([1, 2, 3], max_new_tokens=1590, draft=draft, ignore_eos=True)) as stream:
        for step, _ in zip(range(301), stream, strict=False):
            if step in (3, 300):
                held.append(held_bytes())
                resident.append(process.memory_info().rss)
    return held, resident
