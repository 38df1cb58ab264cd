"""The inner loops of products with weights in codes as LLVM IR; ``inner_loops`` has those of elements.

coded_dots   codes [outputs, length] · x [rows, length], with a scale for each block  ->  out [rows, outputs]
exact_dots   codes of int8 of one scale for each output, multiplied as integers       ->  out [rows, outputs]
"""

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types

from runtime.model.kernels import decoding, int4, int8
from runtime.model.kernels.elements import F32, I64, LANES, function, held, pointer
from runtime.model.kernels.inner_loops import inner_loop, row_at, store_totals, totals_of


def coded_dots(code: int | None, outputs: int, rows: int, *, zeros: bool) -> Any:
    """Return an intrinsic for the dot products of ``outputs`` rows of a weight in codes with ``rows`` rows of x.

    Its arguments: the kernel's pointer; address and stride of the codes, or of their numbers (``code`` None); of the
    rows of x as ``decoding.arranged`` leaves them, with what each block begins with behind the last block, or as
    ``int4.arrange`` does; of the results, float32 [rows, outputs] without a gap; of the scales of each row of codes, as
    ``write_factors`` leaves them; address of the zero points, which have the same stride and are read where ``zeros``;
    the number of blocks.

    A result has one order of summation, that of ``decoding`` or ``int4``, with as many sums as a vector has lanes; then
    that of ``dots``.
    """

    def body(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, left, left_stride, right, right_stride, out, scales, factors_stride, zero_points, blocks = args
        if code == decoding.INT4:
            sums = int4.sums(
                builder, outputs, rows, zeros=zeros, blocks=blocks,
                codes=[held(builder, row_at(builder, left, left_stride, output)) for output in range(outputs)],
                x=[held(builder, row_at(builder, right, right_stride, row)) for row in range(rows)],
                scales=[held(builder, row_at(builder, scales, factors_stride, output)) for output in range(outputs)],
                points=[row_at(builder, zero_points, factors_stride, output) for output in range(outputs)],
            )  # fmt: skip
            store_totals(builder, sums, outputs, out, None)
            return context.get_dummy_value()
        varies = builder.sext(builder.icmp_signed("!=", factors_stride, I64(4)), I64)  # else all blocks have one scale
        vector = ir.VectorType(F32, LANES)
        fma = function(builder, vector, [vector] * 3, f"llvm.fma.v{LANES}f32")
        zero, row_bytes = ir.Constant(vector, [0.0] * LANES), builder.mul(blocks, I64(4 * decoding.BLOCK))
        lefts = [held(builder, row_at(builder, left, left_stride, output)) for output in range(outputs)]
        rights = [held(builder, row_at(builder, right, right_stride, row)) for row in range(rows)]
        begins = [builder.add(start, row_bytes) for start in rights]
        of_scales = [held(builder, row_at(builder, scales, factors_stride, output)) for output in range(outputs)]
        of_points = [row_at(builder, zero_points, factors_stride, output) for output in range(outputs)]

        def multiply(block: Any, sums: Sequence[Any]) -> list[Any]:
            place, word = builder.mul(block, I64(4 * decoding.BLOCK)), builder.mul(block, I64(4))
            factor = builder.and_(word, varies)
            firsts = [decoding.splat(builder, builder.add(start, word)) for start in begins]
            begin = not zeros and code in (None, decoding.INT8)
            partial = [firsts[index // outputs] if begin else zero for index in range(rows * outputs)]
            if code is not None:
                decoding.prefetch_rows(builder, lefts[0], block, outputs * decoding.block_bytes(code), 1)
            sources = [_numbers(builder, code, start, block) for start in lefts]
            for number in range(decoding.VECTORS):
                places = [builder.add(start, builder.add(place, I64(4 * LANES * number))) for start in rights]
                values = [builder.load(pointer(builder, address), typ=vector, align=4) for address in places]
                for output, source in enumerate(sources):
                    weights = next(source)
                    for row, value in enumerate(values):
                        index = row * outputs + output
                        partial[index] = builder.call(fma, [weights, value, partial[index]])
            of_block = [decoding.splat(builder, builder.add(start, factor)) for start in of_scales]
            return [
                builder.call(fma, [partial[index], of_block[index % outputs], total])
                for index, total in enumerate(sums)
            ]

        def subtract(some: Any, sums: Sequence[Any]) -> list[Any]:
            beyond = builder.mul(some, I64(4))
            own, points = (
                [builder.load(pointer(builder, builder.add(base, beyond)), typ=vector, align=4) for base in bases]
                for bases in (begins, of_points)
            )
            return [
                builder.call(fma, [points[index % outputs], own[index // outputs], total])
                for index, total in enumerate(sums)
            ]

        sums = decoding.in_blocks(builder, I64(0), blocks, 1, [zero] * (rows * outputs), multiply)
        if zeros:
            sums = decoding.in_blocks(builder, I64(0), blocks, LANES, sums, subtract)
        store_totals(builder, sums, outputs, out, None)
        return context.get_dummy_value()

    return inner_loop(body, 9)


def exact_dots(outputs: int, rows: int) -> Any:
    """Return an intrinsic for the dot products of ``outputs`` rows of int8 codes with ``rows`` rows of x, by ``int8``.

    Its arguments: the kernel's pointer; address and stride of the codes; of the rows of x as ``int8.arrange`` leaves
    them; of the results, float32 [rows, outputs] without a gap; of the scales, float32 [outputs]; columns of a row.
    """

    def body(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, left, left_stride, right, right_stride, out, scales, inputs = args
        x = [row_at(builder, right, right_stride, row) for row in range(rows)]
        sums = int8.sums(builder, [row_at(builder, left, left_stride, number) for number in range(outputs)], x, inputs)
        at_once, of_row = LANES // (outputs * int8.DIGITS), outputs * int8.DIGITS
        for first in range(0, rows, at_once):
            some = x[first : first + at_once]
            totals = totals_of(builder, sums[first * of_row : (first + len(some)) * of_row], builder.add)
            results = int8.scaled(builder, totals, some, scales, inputs)
            builder.store(results, pointer(builder, builder.add(out, I64(4 * first * outputs))), align=4)
        return context.get_dummy_value()

    return inner_loop(body, 7)


def _numbers(builder: ir.IRBuilder, code: int | None, start: Any, block: Any) -> Iterator[Any]:
    """Yield the numbers of a block of a row that begins at ``start``; ``code`` None: they are in memory."""
    if code is not None:
        yield from decoding.numbers(
            builder, code, builder.add(start, builder.mul(block, I64(decoding.block_bytes(code))))
        )
        return
    first = builder.add(start, builder.mul(block, I64(4 * decoding.BLOCK)))
    for number in range(decoding.VECTORS):
        source = pointer(builder, builder.add(first, I64(4 * LANES * number)))
        yield builder.load(source, typ=ir.VectorType(F32, LANES), align=4)
