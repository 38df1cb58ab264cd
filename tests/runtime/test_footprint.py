"""Decoding does not grow the memory of the process."""

import ctypes
import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from runtime.engine import Engine
from runtime.model.kernels.arguments import attend_floats
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
def test_allocated_bytes_of_step_300_are_those_of_step_3_and_of_scores_for_more_positions(
    draft: bool, tmp_path: Path
) -> None:
    """In a process of its own: one of other tests has their threads, caches and freed memory."""
    directory, _ = compiled_plan(tmp_path, context=1600)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        early, late = pool.submit(_measured, directory, draft).result()
    # Lists of tokens may grow. A cache row or a logit leaked per step would exceed this.
    assert abs(late.held - early.held - (late.scores - early.scores)) < 48 << 10, (early, late)
    assert late.resident - early.resident <= 256 << 10, "resident bytes may vary by pages that the allocator keeps"


@dataclass(frozen=True)
class _Memory:
    """Bytes that a process has allocated, and has in memory, after a step."""

    tokens: int
    held: int
    resident: int

    @property
    def scores(self) -> int:
        """Return the bytes for attention scores that the base and the drafter keep between steps, on one thread."""
        positions = -(-self.tokens // 128) * 128  # both attend to their cache by blocks of 128 positions
        return 2 * 4 * attend_floats(head_dim=8, columns=positions)


def _measured(directory: Path, draft: bool) -> tuple[_Memory, _Memory]:
    # a worker of pytest without a core of its own gives its processes all of them; each thread has its scores
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with Engine.open(directory) as engine:
        _at_steps(engine, draft)  # warm up: libraries cache data per shape
        early, late = _at_steps(engine, draft)
        return early, late


def _at_steps(engine: Engine, draft: bool) -> list[_Memory]:
    """Return the memory after step 3 and after step 300."""
    measured, process, prompt = [], psutil.Process(), [1, 2, 3]
    tokens = len(prompt)
    with closing(engine.stream(prompt, max_new_tokens=1590, draft=draft, ignore_eos=True)) as stream:
        for step, piece in zip(range(301), stream, strict=False):
            tokens += len(piece.tokens)
            if step in (3, 300):
                measured.append(_Memory(tokens, held_bytes(), process.memory_info().rss))
    return measured
