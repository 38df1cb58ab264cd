"""The inner loops of the kernels as LLVM IR: dot products of rows, and sums of rows by weight.

Numba's vectoriser keeps neither several sums in registers nor their order. Each function returns an intrinsic for a
fixed number of rows and lanes; what is left over of a row that is no multiple of the lanes is the caller's.

    dots    weights [outputs, length] · x [rows, length]  ->  out [rows, outputs]
    weigh   out [items, lanes] += weights [items, rows] · values [rows, lanes]
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.model.kernels.elements import F32, I32, I64, POINTER, pointer, scalar_of, widened

WEIGH_LANES = 8
"""Values of one register in ``weigh``, whose lanes are a multiple of it."""


def dots(outputs: int, rows: int, lanes: int, ahead: int) -> Any:
    """Return an intrinsic for the dot products of ``outputs`` rows of elements with ``rows`` rows of float32.

    Its arguments: the kernel's pointer; address and stride of the elements (weights); of the float32 rows (x); of the
    results, float32 [rows, outputs]; the length of a row, a multiple of ``lanes`` and not 0. Each product is one vector
    of ``lanes`` sums over the length, halved until one is left: an order that does not depend on outputs or rows.
    Elements are prefetched ``ahead`` bytes before they are read, where that is not 0.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, weights, weights_stride, x, x_stride, out, out_stride, length = args
        vector, nbytes = ir.VectorType(F32, lanes), element.bitwidth // 8
        fma = _multiply_add(builder, vector)
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32]), "llvm.prefetch.p0"
        )

        before, loop = builder.block, builder.append_basic_block("loop")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        offset = builder.phi(I64)  # of the first lane in its row, in elements
        offset.add_incoming(I64(0), before)
        sums = [builder.phi(vector) for _ in range(outputs * rows)]
        for partial in sums:
            partial.add_incoming(ir.Constant(vector, [0.0] * lanes), before)

        def load(start: Any, scalar: ir.Type, size: int) -> Any:
            source = pointer(builder, builder.add(start, builder.mul(offset, I64(size))))
            return builder.load(source, typ=ir.VectorType(scalar, lanes), align=size)

        inputs = [load(_row(builder, x, x_stride, row), F32, 4) for row in range(rows)]
        next_sums = []
        for output in range(outputs):
            start = _row(builder, weights, weights_stride, output)
            if ahead:
                later = builder.add(start, builder.add(builder.mul(offset, I64(nbytes)), I64(ahead)))
                builder.call(prefetch, [pointer(builder, later), I32(0), I32(3), I32(1)])
            weight = widened(builder, load(start, scalar_of(element), nbytes), element)
            next_sums += [builder.call(fma, [weight, inputs[row], sums[output * rows + row]]) for row in range(rows)]
        next_offset = builder.add(offset, I64(lanes))
        offset.add_incoming(next_offset, loop)
        for partial, value in zip(sums, next_sums, strict=True):
            partial.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", next_offset, length), loop, after)
        builder.position_at_end(after)
        for number, value in enumerate(next_sums):
            output, row = divmod(number, rows)
            target = builder.add(_row(builder, out, out_stride, row), I64(4 * output))
            builder.store(_total(builder, value), pointer(builder, target), align=4)
        return context.get_dummy_value()

    return _inner_loop(code)


def weigh(lanes: int, items: int) -> Any:
    """Return an intrinsic that adds rows of ``lanes`` elements to the sums of ``items`` items, each row by its weight.

    Its arguments: the kernel's pointer; address and stride of the elements (values); of the weights, float32 [items,
    rows]; of the sums so far, float32 [items, lanes]; the number of rows, not 0. Rows are added in their order.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, values, stride, weights, weights_stride, out, out_stride, rows = args
        vector, nbytes, parts = ir.VectorType(F32, WEIGH_LANES), element.bitwidth // 8, range(lanes // WEIGH_LANES)
        fma = _multiply_add(builder, vector)
        before, loop = builder.block, builder.append_basic_block("loop")
        after = builder.append_basic_block("after")

        def at(base: Any, step: Any, number: Any, beyond: int = 0) -> Any:
            return pointer(builder, builder.add(base, builder.add(builder.mul(step, number), I64(beyond))))

        registers = [(item, part) for item in range(items) for part in parts]
        first_sums = [
            builder.load(at(out, out_stride, I64(i), 32 * part), typ=vector, align=4) for i, part in registers
        ]
        builder.branch(loop)
        builder.position_at_end(loop)
        row = builder.phi(I64)
        row.add_incoming(I64(0), before)
        sums = [builder.phi(vector) for _ in registers]
        for partial, start in zip(sums, first_sums, strict=True):
            partial.add_incoming(start, before)
        inputs = []
        for part in parts:
            source = at(values, stride, row, WEIGH_LANES * nbytes * part)
            loaded = builder.load(source, typ=ir.VectorType(scalar_of(element), WEIGH_LANES), align=nbytes)
            inputs.append(widened(builder, loaded, element))
        next_sums: list[Any] = []
        for item in range(items):
            weight = builder.load(at(_row(builder, weights, weights_stride, item), I64(4), row), typ=F32, align=4)
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, I32(0))
            everywhere = ir.Constant(ir.VectorType(I32, WEIGH_LANES), [0] * WEIGH_LANES)
            factor = builder.shuffle_vector(first, first, everywhere)
            next_sums += [builder.call(fma, [inputs[p], factor, sums[item * len(parts) + p]]) for p in parts]
        next_row = builder.add(row, I64(1))
        row.add_incoming(next_row, loop)
        for partial, value in zip(sums, next_sums, strict=True):
            partial.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", next_row, rows), loop, after)
        builder.position_at_end(after)
        for (item, part), value in zip(registers, next_sums, strict=True):
            builder.store(value, at(out, out_stride, I64(item), 32 * part), align=4)
        return context.get_dummy_value()

    return _inner_loop(code)


def _inner_loop(code: Any) -> Any:
    """Return ``code`` as an intrinsic of the kernel's pointer and seven int64."""

    @intrinsic  # type: ignore[untyped-decorator]
    def loop(
        typing: Any, data: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, out: Any, out_stride: Any,
        length: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(data, *[types.int64] * 7)
        return signature, lambda context, builder, signature, args: code(data.dtype, context, builder, args)

    return loop


def _row(builder: ir.IRBuilder, base: Any, stride: Any, number: int) -> Any:
    """Return the address of a row."""
    return builder.add(base, builder.mul(stride, I64(number)))


def _multiply_add(builder: ir.IRBuilder, vector: ir.Type) -> Any:
    """Return LLVM's fused multiply-add of vectors."""
    signature = ir.FunctionType(vector, [vector] * 3)
    return cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{vector.count}f32")


def _total(builder: ir.IRBuilder, value: Any) -> Any:
    """Sum a vector: its upper half is added to its lower half until one lane is left."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (ir.Constant(ir.VectorType(I32, lanes), list(range(s, s + lanes))) for s in (0, lanes))
        value = builder.fadd(builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high))
    return builder.extract_element(value, I32(0))
