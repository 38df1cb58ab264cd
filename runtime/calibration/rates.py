"""Products of a few rows with weights that no cache holds and with some that one does, in the dtypes of plans.

A sample is some products with different pieces of the weights, as those of a few layers are, without the time of the
interpreter for each, which whole layers do not take. It takes one to some milliseconds: long beside the time by which
processes begin apart, and on a busy machine, too, many samples end before another program gets the core. Pieces are
taken in turn, so that each is out of the caches when it comes again; processes begin far from each other, since what
one reads is then in the cache that they share. Those of the ``cached`` set are few enough to stay, and are read once
before they are timed. Attention is timed with a cache of some hundred positions beside one of a
few, for heads of several dims: part of a vector costs more than a whole one.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
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
BYTES: dict[Held, int] = {"memory": 384 << 20, "cached": 20 << 20}
"""All pieces of a dtype, of which those of ``memory`` are the same bytes for all dtypes: more than a cache holds, and a
small model with its drafter. Beside a third-level cache of 480 MiB that other machines use too, one core read 96 MiB
at 20.8 GB/s, 192 at 14.4 and 288 to 576 at 13; two read the same 576 at once at 14.7 each, others at 12.2 each."""
WORDS = (0x3C00, 0x3C80)
"""Least and end of the 16-bit words that are weights of each dtype: 1.0 to 1.1 in float16, 0.008 to 0.016 in others."""
TURNS = 3
"""Samples of each product in a round; the least of them counts."""
PRODUCTS = 8
"""Products of a sample, as those of two layers: the fastest step is the sum of many, and the fastest product of many
alone was a tenth to a third shorter than their mean."""
CALLS, CALL_VALUES = 10, 32
"""Calls of an operation with so many values, of which the shortest is the time of a call."""
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
SCORE_ROWS, SCORE_HEADS, SCORE_KV_HEADS = 16, 8, 4
SCORE_POSITIONS, FEW_POSITIONS = 256, 16
"""Positions that are attended to: what the few take is in the time of a row."""
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
        self._next_byte = dict.fromkeys(HELD, 0)
        words = torch.randint(*WORDS, (INPUTS["memory"] * OUTPUTS,), generator=generator, dtype=torch.int16)
        memory = words.repeat(_even(BYTES["memory"] // words.nbytes))
        for name in NAMES:
            ops.prepare(DTYPES[name], codes=False)
            for held in HELD:
                values = INPUTS[held] * OUTPUTS
                every = memory if held == "memory" else words[:values].repeat(_even(BYTES[held] // (2 * values)))
                pieces = every.view(DTYPES[name]).view(-1, OUTPUTS, INPUTS[held])
                self._pieces[held, name] = [piece.t() for piece in pieces]
                for rows in ROWS:
                    x = torch.randn(rows, INPUTS[held], generator=generator)
                    self._rows[held, name, rows] = x.to(DTYPES[name])

    @property
    def values(self) -> dict[Held, int]:
        """Weights of a product."""
        return {held: INPUTS[held] * OUTPUTS for held in HELD}

    def begin_at(self, number: int, processes: int) -> None:
        """Go on with the weights that are as far from those of each other one of so many processes as they can be."""
        self._next_byte["memory"] = BYTES["memory"] * number // processes

    def samples(self, ready: Callable[[], object], turns: int = TURNS) -> Spans:
        """Return so many spans of each product; ``ready``: called before each."""
        times: Spans = {held: {name: {rows: [] for rows in ROWS} for name in NAMES} for held in HELD}
        call_ns = _product_call_ns()
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
        x = self._rows["memory", WORK_DTYPE, 1]
        for weight in self._next("memory", WORK_DTYPE, times):
            ops.product(x, weight)

    def row_samples(self, ready: Callable[[], object], turns: int = TURNS) -> list[Span]:
        """Return so many spans of what a layer does with ROW_ROWS rows besides products; ``ready`` as above."""
        rows, dtype, head_dim = ROW_ROWS, DTYPES[ROW_DTYPE], ROW_VALUES // HEADS
        x, weight = torch.ones(rows, ROW_VALUES, dtype=dtype), torch.ones(ROW_VALUES, dtype=dtype)
        both = torch.ones(rows, 2 * CHANNELS, dtype=dtype)
        qkv = torch.ones(rows, HEADS + 2 * KV_HEADS, head_dim, dtype=dtype)
        cache = torch.zeros(1, rows, 2 * KV_HEADS, head_dim, dtype=dtype)
        rotary, bias = torch.zeros(2, rows, 1, head_dim, dtype=dtype), torch.zeros(1, 1, rows, rows, dtype=dtype)
        calls_ns, spans = _row_calls_ns(), list[Span]()
        for _ in range(1 + turns):
            ready()
            began = time.perf_counter_ns()
            for _ in range(2):
                ops.norm(x, weight, 1e-6)
            ops.gated(both)
            ops.attend(qkv, HEADS, cache, rotary, bias, 0, rows, slice(0, rows), 0)
            spans.append(_less(began, time.perf_counter_ns(), calls_ns))
        return spans[1:]  # the first has its operands out of the caches

    def score_samples(self, ready: Callable[[], object], turns: int = TURNS) -> ScoreSpans:
        """Return so many spans of attention of some rows to many positions, less that to a few; ``ready`` as above."""
        times: ScoreSpans = {name: {} for name in NAMES}
        for name, dims in ((name, dims) for name in NAMES for dims in SCORE_DIMS):
            dtype, rows, heads = DTYPES[name], SCORE_ROWS, SCORE_HEADS + 2 * SCORE_KV_HEADS
            qkv = torch.ones(rows, heads, dims, dtype=dtype)
            cache = torch.zeros(1, SCORE_POSITIONS, 2 * SCORE_KV_HEADS, dims, dtype=dtype)
            rotary = torch.zeros(2, rows, 1, dims, dtype=dtype)
            biases = [torch.zeros(1, 1, rows, columns, dtype=dtype) for columns in (FEW_POSITIONS, SCORE_POSITIONS)]
            few, many = (partial(ops.attend, qkv, SCORE_HEADS, cache, rotary, bias, 0) for bias in biases)
            spans, written = list[Span](), slice(0, rows)
            few_ns = _shortest_ns(partial(few, FEW_POSITIONS, written, 0))
            for _ in range(1 + turns):
                ready()
                began = time.perf_counter_ns()
                many(SCORE_POSITIONS, written, 0)
                spans.append(_less(began, time.perf_counter_ns(), few_ns))
            times[name][dims] = spans[1:]  # as of rows
        return times

    def _turns(self, held: Held, name: str, turns: int) -> Iterator[list[Tensor]]:
        """Yield the pieces of so many samples."""
        if held == "cached":
            for piece in self._pieces[held, name]:
                ops.product(self._rows[held, name, 1], piece)
        for _ in range(turns):
            yield self._next(held, name, PRODUCTS)

    def _next(self, held: Held, name: str, count: int) -> list[Tensor]:
        """Return the next so many pieces of a dtype: all dtypes go through the memory together."""
        pieces = self._pieces[held, name]
        nbytes = pieces[0].nbytes
        first = -(-self._next_byte[held] // nbytes)
        self._next_byte[held] = (first + count) * nbytes % (len(pieces) * nbytes)
        return [pieces[(first + number) % len(pieces)] for number in range(count)]


def _even(number: int) -> int:
    """Return the next lower even number, and 2 at least: two words are one weight in float32."""
    return max(2, number // 2 * 2)


def _less(began: int, ended: int, ns: int) -> Span:
    """Return a span that is so many ns shorter, and 1 ns at least."""
    return min(began + ns, ended - 1), ended


def _product_call_ns() -> int:
    """Return the time in which the interpreter calls a product, the least one."""
    return _shortest_ns(partial(ops.product, torch.ones(1, CALL_VALUES), torch.ones(CALL_VALUES, CALL_VALUES).t()))


def _row_calls_ns() -> int:
    """Return the time in which the interpreter calls what ``row_samples`` times, each with the least operands."""
    dtype = DTYPES[ROW_DTYPE]
    x, qkv = torch.ones(1, CALL_VALUES, dtype=dtype), torch.ones(1, 3, CALL_VALUES, dtype=dtype)
    cache, rotary = torch.zeros(1, 1, 2, CALL_VALUES, dtype=dtype), torch.zeros(2, 1, 1, CALL_VALUES, dtype=dtype)
    bias = torch.zeros(1, 1, 1, 1, dtype=dtype)
    norm_ns = _shortest_ns(partial(ops.norm, x, x[0], 1e-6))
    gated_ns = _shortest_ns(partial(ops.gated, x))
    return 2 * norm_ns + gated_ns + _shortest_ns(partial(ops.attend, qkv, 1, cache, rotary, bias, 0, 1, slice(0, 1), 0))


def _shortest_ns(call: Callable[[], object]) -> int:
    """Return the shortest time of some calls."""
    times = list[int]()
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return min(times)


def scores() -> int:
    """Return the scores of a sample of attention, beside those to a few positions."""
    return SCORE_ROWS * SCORE_HEADS * (SCORE_POSITIONS - FEW_POSITIONS)
