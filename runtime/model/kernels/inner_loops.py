"""The inner loops of the kernels as LLVM IR: dot products of rows, and sums of rows by weight.

Numba's vectoriser keeps neither several sums in registers nor their order. Each function returns an intrinsic for a
fixed number of rows; what is left over of a row that is no multiple of ``step`` is the caller's.

    dots      left [outputs, length] · right [rows, length]  ->  out [rows, outputs]
    part_dots as dots, of a part of each row: sums stay vectors in memory until the last part
    finish    out [rows, outputs] = sums [rows, outputs] + added [rows, outputs], as elements
    weigh     out [items, lanes] += weights [items, rows] · values [rows, lanes]

A dot product has one order of summation, whatever ``outputs`` and ``rows`` are. Its elements are multiplied ``step`` at
a time, and added to as many sums as a vector has lanes, from the first element to the last. Then the upper half of the
lanes is added to the lower half until one is left.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.elements import (
    BFLOAT,
    F32,
    I32,
    I64,
    LANES,
    LINE_BYTES,
    function,
    narrowed,
    pairs,
    pointer,
    prefetch,
    scalar_of,
    widened,
)  # fmt: skip


def step(element: types.Type) -> int:
    """Return the elements of a row that one instruction multiplies."""
    return 2 * LANES if pairs(element) else LANES


@intrinsic  # type: ignore[untyped-decorator]
def step_of(typing: Any, data: Any) -> Any:
    """Return ``step`` of a kernel's elements."""
    known = step(data.dtype)
    return types.int64(data), lambda context, builder, signature, args: I64(known)


def dots(outputs: int, rows: int, prefetches: int = 0, *, apart: bool = False) -> Any:
    """Return an intrinsic for the dot products of ``outputs`` rows of elements with ``rows`` rows of x.

    Its arguments: the kernel's pointer; address and stride of the elements (left); of the rows of x, which are float32,
    or elements where those are multiplied in pairs; of the results, float32 [rows, outputs], without a gap unless
    ``apart``; the length of a row, a multiple of ``step`` and not 0; the address from which on ``prefetches`` rows of
    elements are prefetched into the second level of cache.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, left, left_stride, right, right_stride, out, out_stride, length, ahead = args
        vector = ir.VectorType(F32, LANES)
        lefts = [row_at(builder, left, left_stride, number) for number in range(outputs)]
        rights = [row_at(builder, right, right_stride, number) for number in range(rows)]
        before, loop = builder.block, builder.append_basic_block("loop")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        offset = builder.phi(I64)  # of the first of ``step`` elements in its row
        offset.add_incoming(I64(0), before)
        sums = [builder.phi(vector) for _ in range(rows * outputs)]
        for partial in sums:
            partial.add_incoming(ir.Constant(vector, [0.0] * LANES), before)
        load_left, load_right, add = _multiplication(builder, element, offset)
        next_sums = list(sums)
        few = [load_left(row) for row in lefts] if outputs <= rows else [load_right(row) for row in rights]
        for number, source in enumerate(rights if outputs <= rows else lefts):
            other = load_right(source) if outputs <= rows else load_left(source)
            for index, value in enumerate(few):
                place = number * outputs + index if outputs <= rows else index * outputs + number
                next_sums[place] = add(sums[place], *((value, other) if outputs <= rows else (other, value)))
        for number in range(prefetches):
            prefetch(
                builder, builder.add(row_at(builder, ahead, left_stride, number), _bytes(builder, offset, element))
            )
        next_offset = builder.add(offset, I64(step(element)))
        offset.add_incoming(next_offset, loop)
        for partial, value in zip(sums, next_sums, strict=True):
            partial.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", next_offset, length), loop, after)
        builder.position_at_end(after)
        store_totals(builder, next_sums, outputs, out, out_stride if apart else None)
        return context.get_dummy_value()

    return inner_loop(code, 8)


def part_dots(outputs: int, rows: int, prefetches: int) -> Any:
    """Return an intrinsic for the dot products of ``outputs`` rows of a weight with ``rows`` rows of x, part by part.

    Its arguments: the kernel's pointer; address and stride of the parts of the rows of the weight (left); of the rows
    of x, float32; address of the sums so far, vectors [rows, outputs] without a gap; the length of the part, a multiple
    of ``step`` and not 0; 1 for the first part, whose sums begin with 0; address of the results, float32 [rows,
    outputs], for the last part, else 0: sums are stored; the address from which on as many bytes of the weight are
    prefetched into the second level of cache as ``prefetches`` of its rows have in the part, in the order of addresses.

    A result has the bits of ``dots``.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, left, left_stride, right, right_stride, sums, length, begins, out, ahead = args
        vector, count, nbytes = ir.VectorType(F32, LANES), rows * outputs, element.bitwidth // 8
        zero = ir.Constant(vector, [0.0] * LANES)
        lefts = [row_at(builder, left, left_stride, number) for number in range(outputs)]
        rights = [row_at(builder, right, right_stride, number) for number in range(rows)]
        places = [pointer(builder, builder.add(sums, I64(4 * LANES * number))) for number in range(count)]

        def multiply(offset: Any, totals: Sequence[Any]) -> list[Any]:
            load_left, load_right, add = _multiplication(builder, element, offset)
            weights, next_totals = [load_left(row) for row in lefts], list(totals)
            for row, source in enumerate(rights):
                value = load_right(source)
                for output, weight in enumerate(weights):
                    place = row * outputs + output
                    next_totals[place] = add(totals[place], weight, value)
            return next_totals

        def lines(line: Any, totals: Sequence[Any]) -> list[Any]:
            offset = builder.mul(line, I64(LINE_BYTES // nbytes))
            beyond = builder.mul(line, I64(prefetches * LINE_BYTES))
            for number in range(prefetches):
                prefetch(builder, builder.add(builder.add(ahead, beyond), I64(LINE_BYTES * number)))
            for first in range(0, LINE_BYTES // nbytes, step(element)):
                totals = multiply(builder.add(offset, I64(first)), totals)
            return list(totals)

        resumed = builder.icmp_signed("==", begins, I64(0))
        before, resume, run = (builder.block, *(builder.append_basic_block(name) for name in ("resume", "run")))
        builder.cbranch(resumed, resume, run)
        builder.position_at_end(resume)
        kept = [builder.load(place, typ=vector, align=4) for place in places]
        builder.branch(run)
        builder.position_at_end(run)
        totals: list[Any] = []
        for value in kept:
            total = builder.phi(vector)
            total.add_incoming(zero, before)
            total.add_incoming(value, resume)
            totals.append(total)
        whole = builder.udiv(length, I64(LINE_BYTES // nbytes))
        totals = repeated(builder, I64(0), whole, totals, lines)
        steps = builder.udiv(length, I64(step(element)))
        done = builder.mul(whole, I64(LINE_BYTES // nbytes // step(element)))
        totals = repeated(
            builder, done, steps, totals, lambda number, some: multiply(builder.mul(number, I64(step(element))), some)
        )
        last, keep, after = (builder.append_basic_block(name) for name in ("last", "keep", "after"))
        builder.cbranch(builder.icmp_signed("!=", out, I64(0)), last, keep)
        builder.position_at_end(keep)
        for place, total in zip(places, totals, strict=True):
            builder.store(total, place, align=4)
        builder.branch(after)
        builder.position_at_end(last)
        store_totals(builder, totals, outputs, out, None)
        builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return inner_loop(code, 9)


def repeated(builder: ir.IRBuilder, first: Any, end: Any, values: Sequence[Any], body: Any) -> list[Any]:
    """Run ``body`` of a number and values for numbers ``first`` … ``end`` - 1, which may be none; return the values."""
    before, loop, after = (builder.block, *(builder.append_basic_block(name) for name in ("loop", "after")))
    builder.cbranch(builder.icmp_signed("<", first, end), loop, after)
    builder.position_at_end(loop)
    number = builder.phi(I64)
    number.add_incoming(first, before)
    state = [builder.phi(value.type) for value in values]
    for partial, value in zip(state, values, strict=True):
        partial.add_incoming(value, before)
    results = body(number, state)
    following, back = builder.add(number, I64(1)), builder.block
    number.add_incoming(following, back)
    for partial, value in zip(state, results, strict=True):
        partial.add_incoming(value, back)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)
    ends = []
    for value, result in zip(values, results, strict=True):
        end_value = builder.phi(value.type)
        end_value.add_incoming(value, before)
        end_value.add_incoming(result, back)
        ends.append(end_value)
    return ends


def finish(outputs: int, rows: int) -> Any:
    """Return an intrinsic that adds to sums, and stores them as elements.

    Its arguments: the kernel's pointer; address of the sums, float32 [rows, outputs]; address and stride of what is
    added, elements [rows, outputs], or address 0: nothing is added; address and stride of the results.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, sums, added, added_stride, out, out_stride = args
        before = builder.block
        adding, after = builder.append_basic_block("adding"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("!=", added, I64(0)), adding, after)
        builder.position_at_end(adding)
        parts = list(_parts(rows, outputs))
        some = [_load_rows(builder, added, added_stride, part, outputs, element) for part in parts]
        builder.branch(after)
        builder.position_at_end(after)
        addends = [builder.phi(value.type) for value in some]
        for addend, value in zip(addends, some, strict=True):
            addend.add_incoming(ir.Constant(value.type, [-0.0] * value.type.count), before)  # x + -0.0 is x
            addend.add_incoming(value, adding)
        for addend, part in zip(addends, parts, strict=True):
            source = pointer(builder, builder.add(sums, I64(4 * outputs * part.start)))
            total = builder.fadd(builder.load(source, typ=addend.type, align=4), addend)
            _store_rows(builder, total, out, out_stride, part, outputs, element)
        return context.get_dummy_value()

    return inner_loop(code, 5)


def weigh(vectors: int, items: int) -> Any:
    """Return an intrinsic that adds rows of ``vectors`` * LANES elements to the sums of ``items`` items by weight.

    Its arguments: the kernel's pointer; address and stride of the elements (values); of the weights, float32 [items,
    rows]; of the sums so far, float32 [items, lanes]; the number of rows, not 0. Rows are added in their order.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, values, stride, weights, weights_stride, out, out_stride, rows = args
        vector, nbytes, parts = ir.VectorType(F32, LANES), element.bitwidth // 8, range(vectors)
        fma = function(builder, vector, [vector] * 3, f"llvm.fma.v{LANES}f32")
        before, loop = builder.block, builder.append_basic_block("loop")
        after = builder.append_basic_block("after")

        def at(base: Any, distance: Any, number: Any, beyond: int = 0) -> Any:
            return pointer(builder, builder.add(base, builder.add(builder.mul(distance, number), I64(beyond))))

        registers = [(item, part) for item in range(items) for part in parts]
        first_sums = [
            builder.load(at(out, out_stride, I64(i), 4 * LANES * part), typ=vector, align=4) for i, part in registers
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
            source = at(values, stride, row, LANES * nbytes * part)
            loaded = builder.load(source, typ=ir.VectorType(scalar_of(element), LANES), align=nbytes)
            inputs.append(widened(builder, loaded, element))
        next_sums: list[Any] = []
        for item in range(items):
            weight = builder.load(at(row_at(builder, weights, weights_stride, item), I64(4), row), typ=F32, align=4)
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, I32(0))
            factor = _shuffled(builder, first, first, [0] * LANES)
            next_sums += [builder.call(fma, [inputs[p], factor, sums[item * vectors + p]]) for p in parts]
        next_row = builder.add(row, I64(1))
        row.add_incoming(next_row, loop)
        for partial, value in zip(sums, next_sums, strict=True):
            partial.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", next_row, rows), loop, after)
        builder.position_at_end(after)
        for (item, part), value in zip(registers, next_sums, strict=True):
            builder.store(value, at(out, out_stride, I64(item), 4 * LANES * part), align=4)
        return context.get_dummy_value()

    return inner_loop(code, 7)


def inner_loop(code: Any, words: int) -> Any:
    """Return ``code`` as an intrinsic of the kernel's pointer and ``words`` int64, 5, 7, 8 or 9."""

    def typed(data: Any) -> Any:
        signature = types.void(data, *[types.int64] * words)
        return signature, lambda context, builder, signature, args: code(data.dtype, context, builder, args)

    # Numba reads the number of arguments from the function
    if words == 5:
        return intrinsic(lambda typing, data, a, b, c, d, e: typed(data))
    if words == 7:
        return intrinsic(lambda typing, data, a, b, c, d, e, f, g: typed(data))
    if words == 8:
        return intrinsic(lambda typing, data, a, b, c, d, e, f, g, h: typed(data))
    assert words == 9
    return intrinsic(lambda typing, data, a, b, c, d, e, f, g, h, i: typed(data))


def _multiplication(
    builder: ir.IRBuilder, element: types.Type, offset: Any
) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any, Any, Any], Any]]:
    """Return how ``step`` elements of a row are loaded, how those of a row of x, and how products are added to sums."""
    vector = ir.VectorType(F32, LANES)

    def load(start: Any, kind: types.Type, scalar: ir.Type) -> Any:
        source = pointer(builder, builder.add(start, _bytes(builder, offset, kind)))
        return builder.load(source, typ=ir.VectorType(scalar, step(element)), align=kind.bitwidth // 8)

    if pairs(element):
        both = ir.VectorType(BFLOAT, step(element))
        multiply = function(builder, vector, [vector, both, both], "llvm.x86.avx512bf16.dpbf16ps.512")

        def load_pairs(start: Any) -> Any:
            return load(start, element, BFLOAT)

        return load_pairs, load_pairs, lambda total, left, right: builder.call(multiply, [total, left, right])
    fma = function(builder, vector, [vector] * 3, f"llvm.fma.v{LANES}f32")
    return (
        lambda start: widened(builder, load(start, element, scalar_of(element)), element),
        lambda start: load(start, types.float32, F32),
        lambda total, left, right: builder.call(fma, [left, right, total]),
    )


def _parts(rows: int, outputs: int) -> Iterator[range]:
    """Yield ranges of rows, each a power of two, whose results fit into one vector."""
    start, most = 0, max(1, LANES // outputs)
    while start < rows:
        count = min(most, 1 << (rows - start).bit_length() - 1)
        yield range(start, start + count)
        start += count


def _load_rows(builder: ir.IRBuilder, base: Any, stride: Any, part: range, outputs: int, element: types.Type) -> Any:
    """Return the first ``outputs`` elements of each row of ``part``, one row behind the other, as float32."""
    row = ir.VectorType(scalar_of(element), outputs)
    values = [
        builder.load(pointer(builder, row_at(builder, base, stride, number)), typ=row, align=element.bitwidth // 8)
        for number in part
    ]
    while len(values) > 1:
        count = 2 * values[0].type.count
        values = [_shuffled(builder, a, b, list(range(count))) for a, b in zip(values[::2], values[1::2], strict=True)]
    return widened(builder, values[0], element)


def _store_rows(
    builder: ir.IRBuilder, total: Any, base: Any, stride: Any, part: range, outputs: int, element: types.Type
) -> None:
    """Store float32 as the first ``outputs`` elements of each row of ``part``."""
    if pairs(element):  # the processor that multiplies pairs also has an instruction that rounds to them
        values = builder.fptrunc(total, ir.VectorType(BFLOAT, total.type.count))
    else:
        values = narrowed(builder, total, element)
    for place, number in enumerate(part):
        some = _shuffled(builder, values, values, list(range(place * outputs, (place + 1) * outputs)))
        target = pointer(builder, row_at(builder, base, stride, number))
        builder.store(some, target, align=element.bitwidth // 8)


def store_totals(builder: ir.IRBuilder, sums: list[Any], outputs: int, out: Any, stride: Any | None) -> None:
    """Store the sums of vectors [rows, outputs] as float32, without a gap or with a stride of rows."""
    at_once = LANES // outputs * outputs
    for first in range(0, len(sums), at_once):
        totals = totals_of(builder, sums[first : first + at_once], builder.fadd)
        for place in range(0, totals.type.count, at_once if stride is None else outputs):
            target, kept = builder.add(out, I64(4 * (first + place))), totals
            if stride is not None:
                target = row_at(builder, out, stride, (first + place) // outputs)
                kept = _shuffled(builder, totals, totals, list(range(place, place + outputs)))
            builder.store(kept, pointer(builder, target), align=4)


def totals_of(builder: ir.IRBuilder, vectors: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """Return the sums of at most LANES vectors as one vector; each is halved until one lane is left.

    Two vectors are halved together, and lie in one thereafter. Where each lane comes from is written down as (number of
    the vector, lane), so that lanes may be taken in any order: one that x86 has instructions for, which move whole
    quarters of 128 bits, or single lanes within each quarter.
    """
    rows = [(vector, [(number, lane) for lane in range(LANES)]) for number, vector in enumerate(vectors)]
    half = LANES // 2
    while half:
        rows += rows[-1:] * (len(rows) % 2)
        halved = []
        for (left, left_names), (right, right_names) in zip(rows[::2], rows[1::2], strict=True):
            names = left_names + right_names
            low = [place for place, (_, lane) in enumerate(names) if lane < half]
            low.sort(key=lambda place: (place % LANES // 4 if half < 4 else 0, place))
            distance = names[:LANES].index((names[0][0], half))
            parts = [_shuffled(builder, left, right, [place + more for place in low]) for more in (0, distance)]
            halved.append((add(*parts), [names[place] for place in low]))
        rows, half = halved, half // 2
    ((total, names),) = rows
    return _shuffled(builder, total, total, [names.index((number, 0)) for number in range(len(vectors))])


def _shuffled(builder: ir.IRBuilder, left: Any, right: Any, places: list[int]) -> Any:
    """Return the lanes at ``places`` of two vectors, those of ``right`` counted on from those of ``left``."""
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(places)), places))


def row_at(builder: ir.IRBuilder, base: Any, stride: Any, number: int) -> Any:
    """Return the address of a row."""
    return builder.add(base, builder.mul(stride, I64(number)))


def _bytes(builder: ir.IRBuilder, count: Any, element: types.Type) -> Any:
    """Return the bytes of so many elements."""
    return builder.mul(count, I64(element.bitwidth // 8))
