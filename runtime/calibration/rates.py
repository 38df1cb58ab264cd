"""Products of a few rows with weights that no cache holds and with some that one does, in the dtypes of plans.

A sample is some products with different pieces of the weights, as those of a few layers are, without the time of the
interpreter for each, which whole layers do not take. It takes one to some milliseconds: long beside the time by which
processes begin apart, and on a busy machine, too, many samples end before another program gets the core. Pieces are
taken in turn, so that each is out of the caches when it comes again; those of the ``cached`` set are few enough to
stay, and are read once before they are timed. Attention is timed with a cache of some hundred positions, for heads of
several dims: part of a vector costs more than a whole one.
"""

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from runtime.image.dtypes import DTYPES
from runtime.model import ops

Held = Literal["memory", "cached"]
"""Where the weights of a product are."""
HELD: tuple[Held, ...] = ("memory", "cached")
ROWS = (1, 4, 6, 8, 16, 60)
"""Rows of plain decoding, of a drafter's passes and small trees, and of EAGLE's default tree."""
NAMES = ("bfloat16", "float16", "float32")
OUTPUTS = 1024
INPUTS: dict[Held, int] = {"memory": 1024, "cached": 256}
"""Of a piece: models that a cache holds have narrow matrices, and products with these are slower."""
BYTES: dict[Held, int] = {"memory": 96 << 20, "cached": 20 << 20}
"""All pieces of a dtype: several times the caches of two cores, and a small model with its drafter."""
TURNS = 3
"""Samples of each product in a round; the least of them counts."""
PRODUCTS = 8
"""Products of a sample, as those of two layers: the fastest step is the sum of many, and the fastest product of many
alone was a tenth to a third shorter than their mean."""
CALLS, CALL_VALUES = 20, 16
"""Calls of a product with so many inputs and outputs, of which the shortest is the time of a call."""
WORK_DTYPE = "bfloat16"
"""Weights that are multiplied before a message."""
ROW_ROWS = 16
"""Rows whose work besides products is timed."""
ROW_DTYPE = "bfloat16"
ROW_VALUES = 1024
"""Values of a hidden state of the rows whose work besides products is timed: two norms, the gated channels, and the
rotation of queries and keys with the attention of the rows to each other."""
SCORE_DIMS = (24, 32, 64, 128)
"""Dims of the heads whose attention is timed: of the embedded model, which leave part of a long vector empty, and of
most others."""
SCORE_ROWS, SCORE_POSITIONS, SCORE_HEADS, SCORE_KV_HEADS = 16, 256, 8, 4
CHANNELS, HEADS, KV_HEADS = 3 * ROW_VALUES, 16, 4

Span = tuple[int, int]
"""Begin and end in ns, by the clock that all processes of a machine have."""
ScoreSpans = dict[str, dict[int, list[Span]]]
"""By dtype and dims of a head."""
Spans = dict[Held, dict[str, dict[int, list[Span]]]]
"""By where the weights are, dtype and rows."""


class Products:
    """Weights of every dtype in pieces, and the rows that they are multiplied with."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._pieces: dict[tuple[Held, str], list[Tensor]] = {}
        self._rows: dict[tuple[Held, str, int], Tensor] = {}
        self._next = count()
        for name in NAMES:
            ops.prepare(DTYPES[name], codes=False)
            for held in HELD:
                piece = torch.rand(OUTPUTS, INPUTS[held], generator=generator).to(DTYPES[name])
                pieces = max(1, BYTES[held] // piece.nbytes)
                self._pieces[held, name] = [piece.clone().t() for _ in range(pieces)]
                for rows in ROWS:
                    x = torch.randn(rows, INPUTS[held], generator=generator)
                    self._rows[held, name, rows] = x.to(DTYPES[name])

    @property
    def values(self) -> dict[Held, int]:
        """Weights of a product."""
        return {held: INPUTS[held] * OUTPUTS for held in HELD}

    def samples(self, ready: Callable[[], object], turns: int = TURNS) -> Spans:
        """Return so many spans of each product; ``ready``: called before each."""
        times: Spans = {held: {name: {rows: [] for rows in ROWS} for name in NAMES} for held in HELD}
        call_ns = _call_ns()
        for held, name, rows in self._rows:
            x = self._rows[held, name, rows]
            for weights in self._turns(held, name, turns):
                ready()
                began = time.perf_counter_ns()
                for weight in weights:
                    ops.product(x, weight)
                ended = time.perf_counter_ns()
                begin = min(began + len(weights) * call_ns, ended - len(weights))  # at least 1 ns of each
                times[held][name][rows].append((begin, ended))
        return times

    def work(self, times: int) -> None:
        """Multiply a row so many times with weights that no cache holds."""
        x, pieces = self._rows["memory", WORK_DTYPE, 1], self._pieces["memory", WORK_DTYPE]
        for _ in range(times):
            ops.product(x, pieces[next(self._next) % len(pieces)])

    def row_samples(self, ready: Callable[[], object], turns: int = TURNS) -> list[Span]:
        """Return so many spans of what a layer does with ROW_ROWS rows besides products; ``ready`` as above."""
        rows, dtype, head_dim = ROW_ROWS, DTYPES[ROW_DTYPE], ROW_VALUES // HEADS
        x, weight = torch.ones(rows, ROW_VALUES, dtype=dtype), torch.ones(ROW_VALUES, dtype=dtype)
        both = torch.ones(rows, 2 * CHANNELS, dtype=dtype)
        qkv = torch.ones(rows, HEADS + 2 * KV_HEADS, head_dim, dtype=dtype)
        cache = torch.zeros(1, rows, 2 * KV_HEADS, head_dim, dtype=dtype)
        rotary, bias = torch.zeros(2, rows, 1, head_dim, dtype=dtype), torch.zeros(1, 1, rows, rows, dtype=dtype)
        spans = list[Span]()
        for _ in range(1 + turns):
            ready()
            began = time.perf_counter_ns()
            for _ in range(2):
                ops.norm(x, weight, 1e-6)
            ops.gated(both)
            ops.attend(qkv, HEADS, cache, rotary, bias, 0, rows, slice(0, rows), 0)
            spans.append((began, time.perf_counter_ns()))
        return spans[1:]  # the first has its operands out of the caches

    def score_samples(self, ready: Callable[[], object], turns: int = TURNS) -> ScoreSpans:
        """Return so many spans of the attention of some rows to many positions; ``ready`` as above."""
        times: ScoreSpans = {name: {} for name in NAMES}
        for name, dims in ((name, dims) for name in NAMES for dims in SCORE_DIMS):
            dtype, rows, heads = DTYPES[name], SCORE_ROWS, SCORE_HEADS + 2 * SCORE_KV_HEADS
            qkv = torch.ones(rows, heads, dims, dtype=dtype)
            cache = torch.zeros(1, SCORE_POSITIONS, 2 * SCORE_KV_HEADS, dims, dtype=dtype)
            rotary = torch.zeros(2, rows, 1, dims, dtype=dtype)
            bias = torch.zeros(1, 1, rows, SCORE_POSITIONS, dtype=dtype)
            spans = list[Span]()
            for _ in range(1 + turns):
                ready()
                began = time.perf_counter_ns()
                ops.attend(qkv, SCORE_HEADS, cache, rotary, bias, 0, SCORE_POSITIONS, slice(0, rows), 0)
                spans.append((began, time.perf_counter_ns()))
            times[name][dims] = spans[1:]  # as of rows
        return times

    def _turns(self, held: Held, name: str, turns: int) -> Iterator[list[Tensor]]:
        """Yield the pieces of so many samples."""
        pieces = self._pieces[held, name]
        if held == "cached":
            for piece in pieces:
                ops.product(self._rows[held, name, 1], piece)
        for _ in range(turns):
            yield [pieces[next(self._next) % len(pieces)] for _ in range(PRODUCTS)]


def _call_ns() -> int:
    """Return the time in which the interpreter calls a product: of the least one, the shortest of some."""
    x, weight = torch.ones(1, CALL_VALUES), torch.ones(CALL_VALUES, CALL_VALUES).t()
    times = list[int]()
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        ops.product(x, weight)
        times.append(time.perf_counter_ns() - began)
    return min(times)


def scores() -> int:
    """Return the scores of a sample of attention."""
    return SCORE_ROWS * SCORE_HEADS * SCORE_POSITIONS
