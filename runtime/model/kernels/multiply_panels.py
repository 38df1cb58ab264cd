"""Products of many rows by vectors of float32: the lanes of a vector are outputs.

In ``inner_loops.dots`` lanes are elements of a row, which are added to each other at the end of each product: a tenth
of the time of short rows. Here rows of the weight are transposed once for all rows of x, a panel at a time, and a value
of x is multiplied with a whole vector of outputs. The order of summation stays that of ``dots``, whose lane j sums the
elements j, j + LANES, j + 2 LANES, … of a row. So the lanes take turns:

    panel  [turn, step, vector, LANES outputs]   element step * LANES + lane(turn) of up to 2 * LANES rows of the weight
    strip  [turn, step, STRIP_ROWS]              the same of 12 rows of x, of 6 with AVX2
    sums   [STRIP_ROWS, vector, LANES outputs]   24 of 32 registers, 12 of 16, from 0, added for step = 0, 1, …

The turns are those of the lanes 0, 8, 4, 12, 2, … (0, 4, 2, 6, 1, …), and the sums of each are added to those of the
lane that ``dots`` adds it to: the second to the first, both with the next two, … . x is packed once for all threads, a
panel by the thread that has its outputs, both as float32. The last strip and the last panel overlap those before them,
where they are not whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.arguments import MANY_ROWS, STRIP_ROWS
from runtime.model.kernels.elements import (
    F32,
    I32,
    I64,
    LANES,
    LINE_BYTES,
    function,
    itemsize,
    numbers,
    pointer,
    prefetch,
    reserved,
    scalar_of,
    splat,
    widened,
)
from runtime.model.kernels.inner_loops import finish, repeated
from runtime.model.kernels.subroutines import by_panels, subroutine
from runtime.model.kernels.tiles import transposed

FLOAT_BYTES = 4
VECTOR, VECTOR_BYTES = ir.VectorType(F32, LANES), FLOAT_BYTES * LANES
VECTORS = 2
"""Vectors of outputs of a panel."""
PANEL_BYTES = LANES << 16
"""Bytes of the panel that a thread has on its stack. Processors with AVX-512 have a second level of cache of 1 MiB,
those with AVX2 at least 256 KiB, and a third one."""
AHEAD_BYTES = 4096
"""Distance at which x is prefetched."""
TURNS = tuple(int(f"{number + LANES:b}"[:0:-1], 2) for number in range(LANES))
"""Lanes in the order of their turns."""
TOGETHER = 4
"""Turns of one loop, whose sums are then those of a quarter of 16 lanes, or of half of 8."""
QUARTERS = LANES // TOGETHER
UNROLLED = 4
"""Steps without a branch between them."""
SUMS_BYTES = STRIP_ROWS * VECTORS * VECTOR_BYTES

panel_floats = reserved(PANEL_BYTES // FLOAT_BYTES)
sums_floats = reserved(((QUARTERS + 2) * SUMS_BYTES + LINE_BYTES) // FLOAT_BYTES)
row_addresses = reserved(2 * LANES)


def turn_values(count: int) -> Any:
    """Return an intrinsic that transposes LANES rows of LANES elements and stores ``count`` of each column as float32.

    Its arguments: the kernel's pointer; address of the int64 addresses of the rows, to each of which an offset is
    added; the offset; address of the results, whole vectors, whose values behind ``count`` the caller overwrites; their
    stride. The results lie in the order of their turns.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def turn(typing: Any, data: Any, table: Any, offset: Any, target: Any, stride: Any) -> Any:
        element, nbytes = data.dtype, data.dtype.bitwidth // 8

        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            _, table, offset, target, stride = args

            def load(number: int, first: int, length: int) -> Any:
                place = builder.load(pointer(builder, builder.add(table, I64(8 * min(number, count - 1)))), typ=I64)
                source = pointer(builder, builder.add(builder.add(place, offset), I64(nbytes * first)))
                values = builder.load(source, typ=ir.VectorType(scalar_of(element), length), align=nbytes)
                return widened(builder, values, element)

            columns = _columns(builder, load)
            for number, lane in enumerate(TURNS):
                place = builder.add(target, builder.mul(stride, I64(number)))
                builder.store(columns[lane], pointer(builder, place), align=FLOAT_BYTES)
            return context.get_dummy_value()

        return types.void(data, *[types.int64] * 4), code

    return turn


def _columns(builder: ir.IRBuilder, load: Callable[[int, int, int], Any]) -> list[Any]:
    """Return the columns of LANES rows of LANES values; ``load``: some values of a row by its number, first, count.

    Of 8 lanes: rows r and r + 4 share a vector, and are interleaved within halves of 128 bits with the next ones.
    """
    if LANES == 16:
        return transposed(builder, [load(row, 0, LANES) for row in range(LANES)])

    def shuffled(left: Any, right: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(places)), places))

    def interleaved(left: Any, right: Any, size: int) -> list[Any]:
        """Interleave words, or pairs of them, of the lower and of the upper quarters of each half."""
        parts = []
        for first in (0, 2):
            lower = [first, 8 + first, first + 1, 9 + first] if size == 1 else [first, first + 1, 8 + first, 9 + first]
            parts.append(shuffled(left, right, [*lower, *(place + 4 for place in lower)]))
        return parts

    columns = []
    for first in (0, 4):
        a, b, c, d = (shuffled(load(row, first, 4), load(row + 4, first, 4), list(range(8))) for row in range(4))
        for left, right in zip(interleaved(a, b, 1), interleaved(c, d, 1), strict=True):
            columns += interleaved(left, right, 2)
    return columns


turn_weights, turn_rows = turn_values(LANES), turn_values(STRIP_ROWS)


def quarter(vectors: int) -> Any:
    """Return an intrinsic that multiplies TOGETHER lanes of a strip with those of a panel, and adds the lanes up.

    Its arguments: address of the first turn in the panel, bytes of a turn; the same of the strip; steps; address of two
    places for sums; of the results.
    """
    count = STRIP_ROWS * vectors

    def code(builder: ir.IRBuilder, args: Any) -> None:
        panel, panel_turn, strip, strip_turn, steps, waiting, out = args
        fma = function(builder, VECTOR, [VECTOR] * 3, f"llvm.fma.v{LANES}f32")
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        unrolled = builder.udiv(steps, I64(UNROLLED))
        begun = builder.mul(unrolled, I64(UNROLLED))

        def at(base: Any, number: int, size: int) -> Any:
            return pointer(builder, builder.add(base, I64(size * number)))

        for turn in range(TOGETHER):
            weights, values = (
                builder.add(base, builder.mul(nbytes, I64(turn)))
                for base, nbytes in ((panel, panel_turn), (strip, strip_turn))
            )

            def multiply(
                number: Any, totals: Sequence[Any], steps: int, weights: Any = weights, values: Any = values
            ) -> list[Any]:
                own = builder.add(weights, builder.mul(number, I64(VECTOR_BYTES * vectors)))
                of_x = builder.add(values, builder.mul(number, I64(FLOAT_BYTES * STRIP_ROWS)))
                totals = list(totals)
                for step in range(steps):
                    outputs = [
                        builder.load(at(own, step * vectors + vector, VECTOR_BYTES), typ=VECTOR, align=VECTOR_BYTES)
                        for vector in range(vectors)
                    ]
                    prefetch(builder, builder.add(of_x, I64(FLOAT_BYTES * STRIP_ROWS * step + AHEAD_BYTES)))
                    for row in range(STRIP_ROWS):
                        value = builder.load(at(of_x, step * STRIP_ROWS + row, FLOAT_BYTES), typ=F32, align=FLOAT_BYTES)
                        same = splat(builder, value)
                        for vector, output in enumerate(outputs):
                            index = row * vectors + vector
                            totals[index] = builder.call(fma, [output, same, totals[index]])
                return totals

            totals = repeated(
                builder, I64(0), unrolled, [zero] * count,
                lambda number, some, multiply=multiply: multiply(builder.mul(number, I64(UNROLLED)), some, UNROLLED),
            )  # fmt: skip
            totals = repeated(
                builder, begun, steps, totals, lambda number, some, multiply=multiply: multiply(number, some, 1)
            )
            for place in ((), (0,), (), (1, 0))[turn]:
                before = builder.add(waiting, I64(SUMS_BYTES * place))
                totals = [
                    _sum(builder, total, builder.load(at(before, number, VECTOR_BYTES), typ=VECTOR, align=VECTOR_BYTES))
                    for number, total in enumerate(totals)
                ]
            target = out if turn == TOGETHER - 1 else builder.add(waiting, I64(SUMS_BYTES * (turn // 2)))
            for number, total in enumerate(totals):
                builder.store(total, at(target, number, VECTOR_BYTES), align=VECTOR_BYTES)

    @intrinsic  # type: ignore[untyped-decorator]
    def multiplied(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
        def lowered(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            code(builder, args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), lowered

    return multiplied


def total(vectors: int) -> Any:
    """Return an intrinsic that adds up the sums of all quarters: their address, address of the results."""

    @intrinsic  # type: ignore[untyped-decorator]
    def added(typing: Any, quarters: Any, out: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            quarters, out = args
            for number in range(STRIP_ROWS * vectors):
                parts = [
                    builder.load(
                        pointer(builder, builder.add(quarters, I64(SUMS_BYTES * place + VECTOR_BYTES * number))),
                        typ=VECTOR, align=VECTOR_BYTES,
                    )
                    for place in range(QUARTERS)
                ]  # fmt: skip
                while len(parts) > 1:
                    parts = [_sum(builder, *both) for both in zip(parts[::2], parts[1::2], strict=True)]
                place = pointer(builder, builder.add(out, I64(VECTOR_BYTES * number)))
                builder.store(parts[0], place, align=VECTOR_BYTES)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return added


def _sum(builder: ir.IRBuilder, left: Any, right: Any) -> Any:
    """Return the sum of two vectors, of which LLVM knows nothing, so that it adds none in another order."""
    kind = ir.FunctionType(VECTOR, [VECTOR])
    return builder.asm(kind, "", "=v,0", [builder.fadd(left, right)], side_effect=False)


def sweep(vectors: int) -> Any:
    """Return a function that multiplies all strips of x by ``vectors`` * LANES rows of the weight from ``first`` on."""
    multiply_quarter, add_quarters, store = quarter(vectors), total(vectors), finish(vectors * LANES, STRIP_ROWS)

    @subroutine(apart=True)
    def swept(data: Any, a: Any, x: Any, x_stride: Any, first: Any, panel: Any) -> None:
        table, sums, steps = row_addresses(), _line(sums_floats()), a.inputs // LANES
        waiting = results = sums + QUARTERS * SUMS_BYTES
        size = itemsize(data)
        panel_turn, strip_turn = _panel_turn(steps, vectors), _strip_turn(steps)
        for vector in range(vectors):
            for output in range(LANES):
                numbers(table)[output] = a.weight + (first + vector * LANES + output) * a.weight_stride
            for step in range(steps):
                place = panel + (step * vectors + vector) * VECTOR_BYTES
                turn_weights(data, table, step * LANES * size, place, panel_turn)
        for start in range(0, a.rows, STRIP_ROWS):
            row, strip = min(start, a.rows - STRIP_ROWS), x + start * x_stride
            for number in range(QUARTERS):
                turn = number * TOGETHER
                multiply_quarter(
                    panel + turn * panel_turn, panel_turn, strip + turn * strip_turn, strip_turn, steps, waiting,
                    sums + number * SUMS_BYTES,
                )  # fmt: skip
            add_quarters(sums, results)
            added: Any = a.added + row * a.added_stride + first * size if a.added else np.int64(0)
            store(data, results, added, a.added_stride, a.out + row * a.out_stride + first * size, a.out_stride)

    return swept


sweep_1, sweep_2 = sweep(1), sweep(VECTORS)


@subroutine(types.int64)
def _line(address: Any) -> Any:
    """Return the address of the first line of the cache from one on."""
    return (address + (LINE_BYTES - 1)) // LINE_BYTES * LINE_BYTES


@subroutine(types.int64)
def _panel_turn(steps: Any, vectors: Any) -> Any:
    """Return the bytes of a turn in a panel: a line more, as turns of a power of two would share lines of the cache."""
    return steps * vectors * VECTOR_BYTES + LINE_BYTES


@subroutine(types.int64)
def _strip_turn(steps: Any) -> Any:
    """Return the bytes of a turn in a strip, behind which its last vector has room."""
    return (steps * STRIP_ROWS + LANES - STRIP_ROWS) * FLOAT_BYTES


@subroutine(apart=True)
def _pack(
    data: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, inputs: Any, first: Any, rows: Any, step: Any
) -> None:  # fmt: skip
    """Pack strips ``first``, ``first`` + ``step``, … of ``rows`` rows of x; ``out_stride`` bytes are for each row."""
    table, steps = row_addresses(), inputs // LANES
    for start in range(first * STRIP_ROWS, rows, step * STRIP_ROWS):
        for row in range(STRIP_ROWS):
            numbers(table)[row] = x + (min(start, rows - STRIP_ROWS) + row) * x_stride
        for number in range(steps):
            place = out + start * out_stride + number * STRIP_ROWS * FLOAT_BYTES
            turn_rows(data, table, number * LANES * itemsize(data), place, _strip_turn(steps))


@subroutine(apart=True)
def _multiply(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a Product; ``x``: its rows, packed."""
    panel = _line(panel_floats())
    for start in range(output, last, VECTORS * LANES):
        if last - start > LANES:
            sweep_2(data, a, x, x_stride, min(start, last - VECTORS * LANES), panel)
        else:
            sweep_1(data, a, x, x_stride, min(start, last - LANES), panel)


@subroutine(types.boolean)
def _apply(data: Any, rows: Any, inputs: Any, outputs: Any) -> Any:
    """Return whether panels are multiplied: many rows, a whole number of steps; ``outputs``: least of a thread."""
    fits = _panel_turn(inputs // LANES, VECTORS) * LANES + LINE_BYTES <= PANEL_BYTES
    return rows >= MANY_ROWS and inputs % LANES == 0 and inputs > 0 and fits and outputs >= VECTORS * LANES


@subroutine(types.boolean)
def _never(data: Any, rows: Any, inputs: Any, outputs: Any) -> Any:
    return False


@subroutine()
def _pack_nothing(
    data: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, inputs: Any, first: Any, rows: Any, step: Any
) -> None:  # fmt: skip
    return


@subroutine()
def _multiply_nothing(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    return


panels_apply = by_panels(_apply, _never)
pack_strips, multiply_panels = by_panels(_pack, _pack_nothing), by_panels(_multiply, _multiply_nothing)
