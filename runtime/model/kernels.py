"""The arithmetic of a layer on a CPU, compiled for the machine by Numba and kept beside this file, or in its cache.

Torch reads 16-bit weights at less than half of the bandwidth where a CPU has no instructions for them, multiplies few
rows slowly, and takes longer to start an operation than a small model needs for it. Here one kernel is one step of a
layer. All threads of the team run it (libgomp's, which are torch's own) and divide its results among them.

Elements are float32, bfloat16 (as uint16) or float16 (as int16), and are computed with as float32. Each result is
summed in an order of its own, whatever the number of rows, threads or other results: a row of a tree has the same bits
as the same row alone. A kernel's only argument is a pointer whose type tells the elements and which points to its
words: addresses and numbers, all int64, as unpacked in its first lines. Strides are in bytes.

All of it is one file: whether what Numba keeps is still that of the source, it sees by the kernel's own file alone.
"""

import zlib
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import cfunc, njit
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
"""Of the sums of a product."""
KEY_LANES = 8
"""Of the products of attention."""
ITEMS = 4
"""Query heads that attend together to a head of the cache, which they then read once."""
AHEAD_BYTES = 1024
"""So far ahead weights are asked for."""
MOST = 6
"""Rows that the registers have sums for, and rows from which on two of the weights are multiplied together."""
MANY = 8
UNIT = 2.0**30
"""What a softmax's weights, 1 at most, are counted in when they are summed: whole numbers have one sum in any order."""
EPSILON_UNIT = 2.0**-60
"""Of a norm's epsilon, which a kernel takes as a whole number."""
FLOATING = {"reassoc", "contract", "nsz", "arcp", "nnan"}
"""Sums may be taken in another order than written, though always in the same; infinities stay what they are."""

F = np.float32
F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()

ELEMENTS = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
"""What kernels are compiled for."""

thread = types.ExternalFunction("omp_get_thread_num", types.int32())
threads = types.ExternalFunction("omp_get_num_threads", types.int32())
barrier = types.ExternalFunction("GOMP_barrier", types.void())


@cache
def compiled(kernel: Callable[[Any], None], dtype: torch.dtype) -> int:
    """The address of a kernel for a dtype.

    Numba numbers the files of one name by who comes first: of two processes that compile for other dtypes, or other
    processors, at the same time, one could take the other's code for its own. So each has a name.
    """
    assert isinstance(kernel, FunctionType)
    own = FunctionType(kernel.__code__, kernel.__globals__)
    own.__module__, own.__qualname__ = kernel.__module__, f"{kernel.__name__}_{ELEMENTS[dtype]}_{_processor()}"
    signature = types.void(types.CPointer(ELEMENTS[dtype]))
    return int(cfunc(signature, cache=True, fastmath=FLOATING, error_model="numpy")(own).address)


@cache
def _processor() -> str:
    named = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    return f"{zlib.crc32(named.encode()):08x}"


# ---- what Numba has no word for ----


def widened(builder: ir.IRBuilder, value: Any, element: types.Type) -> Any:
    """An element, or a vector of them, as float32."""

    def like(scalar: ir.Type) -> ir.Type:
        return ir.VectorType(scalar, value.type.count) if isinstance(value.type, ir.VectorType) else scalar

    if element == types.float32:
        return value
    if element == types.int16:
        return builder.fpext(builder.bitcast(value, like(ir.HalfType())), like(F32))
    wide = builder.zext(value, like(I32))
    half = ir.Constant(wide.type, [16] * wide.type.count if isinstance(wide.type, ir.VectorType) else 16)
    return builder.bitcast(builder.shl(wide, half), like(F32))


def narrowed(builder: ir.IRBuilder, value: Any, element: types.Type) -> Any:
    """A float32 as an element, rounded to the nearest, of two to the even one."""
    if element == types.float32:
        return value
    if element == types.int16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), I16)
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    rounded = builder.add(builder.add(bits, I32(0x7FFF)), odd)
    quiet = builder.or_(bits, I32(1 << 22))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, I32(16)), I16)


def scalar_of(element: types.Type) -> ir.Type:
    return F32 if element == types.float32 else I16


def pointer(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, POINTER)


def multiply_add(builder: ir.IRBuilder, vector: ir.Type) -> Any:
    kind = ir.FunctionType(vector, [vector] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{vector.count}f32")


@intrinsic  # type: ignore[untyped-decorator]
def words(typing: Any, data: Any) -> Any:
    """The words of a call."""
    kind = types.CPointer(types.int64)

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(kind))

    return kind(data), code


def pointer_to(element: types.Type) -> Any:
    """An address as a pointer to elements of one type."""
    kind = types.CPointer(element)

    @intrinsic  # type: ignore[untyped-decorator]
    def made(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), code

    return made


numbers, floats = pointer_to(types.int64), pointer_to(types.float32)


@intrinsic  # type: ignore[untyped-decorator]
def room(typing: Any) -> Any:
    """Place for a few float32 on the stack: its address."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(cgutils.alloca_once(builder, F32, size=8), I64)

    return types.int64(), code


@intrinsic  # type: ignore[untyped-decorator]
def elements(typing: Any, data: Any, address: Any) -> Any:
    """A pointer to elements."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(data))

    return data(data, types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def size(typing: Any, data: Any) -> Any:
    """Bytes of an element."""
    width = data.dtype.bitwidth // 8
    return types.int64(data), lambda context, builder, signature, args: I64(width)


@intrinsic  # type: ignore[untyped-decorator]
def wide(typing: Any, value: Any) -> Any:
    """An element as float32."""
    return types.float32(value), lambda context, builder, signature, args: widened(builder, args[0], value)


@intrinsic  # type: ignore[untyped-decorator]
def put(typing: Any, data: Any, index: Any, value: Any) -> Any:
    """Write a float32 as the element of an index."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target = builder.gep(args[0], [args[1]], source_etype=scalar_of(data.dtype))
        builder.store(narrowed(builder, args[2], data.dtype), target, align=data.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def two_to(typing: Any, power: Any) -> Any:
    """2 ** power, of an int32 that is the exponent of a float32."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(args[0], I32(127)), I32(23)), F32)

    return types.float32(types.int32), code


def dots(outputs: int, rows: int, lanes: int, ahead: int) -> Any:
    """A kernel's inner loop: so many rows of elements (weights) by so many of float32 (x), each product one sum.

    Called with the pointer of the kernel; address and stride of the elements; of x; of the results, float32
    [rows, outputs]; and how long rows are, a multiple of ``lanes``. It asks for elements ``ahead`` bytes before.
    """

    def code(element: types.Type, context: Any, builder: ir.IRBuilder, args: Any) -> Any:
        _, weights, weights_stride, x, x_stride, out, out_stride, length = args
        vector = ir.VectorType(F32, lanes)
        fma = multiply_add(builder, vector)
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32]), "llvm.prefetch.p0"
        )

        def at(base: Any, stride: Any, number: int) -> Any:
            return builder.add(base, builder.mul(stride, I64(number)))

        before, loop = builder.block, builder.append_basic_block("loop")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        place = builder.phi(I64)
        place.add_incoming(I64(0), before)
        sums = [builder.phi(vector) for _ in range(outputs * rows)]
        for each in sums:
            each.add_incoming(ir.Constant(vector, [0.0] * lanes), before)

        def load(start: Any, scalar: ir.Type, nbytes: int) -> Any:
            where = pointer(builder, builder.add(start, builder.mul(place, I64(nbytes))))
            return builder.load(where, typ=ir.VectorType(scalar, lanes), align=nbytes)

        given = [load(at(x, x_stride, row), F32, 4) for row in range(rows)]
        found = []
        for output in range(outputs):
            start, nbytes = at(weights, weights_stride, output), element.bitwidth // 8
            if ahead:
                later = builder.add(start, builder.add(builder.mul(place, I64(nbytes)), I64(ahead)))
                builder.call(prefetch, [pointer(builder, later), I32(0), I32(3), I32(1)])
            weight = widened(builder, load(start, scalar_of(element), nbytes), element)
            found += [builder.call(fma, [weight, given[row], sums[output * rows + row]]) for row in range(rows)]
        following = builder.add(place, I64(lanes))
        place.add_incoming(following, loop)
        for each, value in zip(sums, found, strict=True):
            each.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, length), loop, after)
        builder.position_at_end(after)
        for number, value in enumerate(found):
            output, row = divmod(number, rows)
            target = builder.add(at(out, out_stride, row), I64(4 * output))
            builder.store(_total(builder, value), pointer(builder, target), align=4)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def made(
        typing: Any, data: Any, weights: Any, stride: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, length: Any
    ) -> Any:
        signature = types.void(data, *[types.int64] * 7)
        return signature, lambda context, builder, signature, args: code(data.dtype, context, builder, args)

    return made


def _total(builder: ir.IRBuilder, value: Any) -> Any:
    """The sum of a vector: halves added until one is left."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (ir.Constant(ir.VectorType(I32, lanes), list(range(s, s + lanes))) for s in (0, lanes))
        value = builder.fadd(builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high))
    return builder.extract_element(value, I32(0))


def weigh(lanes: int, items: int) -> Any:
    """A kernel's inner loop: rows of so many elements (values), each times its float32 (weight) of an item, are added.

    Called with the pointer of the kernel; address and stride of the elements; of the weights, float32 [items, rows]; of
    the sums so far, float32 [items, lanes]; and how many rows there are. Each sum is taken in the order of the rows.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def made(
        typing: Any, data: Any, values: Any, stride: Any, weights: Any, weights_stride: Any, out: Any, out_stride: Any,
        rows: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            _, values, stride, weights, weights_stride, out, out_stride, rows = args
            vector, element = ir.VectorType(F32, 8), data.dtype
            nbytes, parts = element.bitwidth // 8, range(lanes // 8)
            fma = multiply_add(builder, vector)
            before, loop = builder.block, builder.append_basic_block("loop")
            after = builder.append_basic_block("after")

            def at(base: Any, step: Any, number: Any, beyond: int = 0) -> Any:
                return pointer(builder, builder.add(base, builder.add(builder.mul(step, number), I64(beyond))))

            places = [(item, part) for item in range(items) for part in parts]
            known = [builder.load(at(out, out_stride, I64(i), 32 * j), typ=vector, align=4) for i, j in places]
            builder.branch(loop)
            builder.position_at_end(loop)
            row = builder.phi(I64)
            row.add_incoming(I64(0), before)
            totals = [builder.phi(vector) for _ in places]
            for total, start in zip(totals, known, strict=True):
                total.add_incoming(start, before)
            given = []
            for part in parts:
                first = at(values, stride, row, 8 * nbytes * part)
                loaded = builder.load(first, typ=ir.VectorType(scalar_of(element), 8), align=nbytes)
                given.append(widened(builder, loaded, element))
            found: list[Any] = []
            for item in range(items):
                own = builder.add(weights, builder.mul(weights_stride, I64(item)))
                weight = builder.load(at(own, I64(4), row), typ=F32, align=4)
                first = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, I32(0))
                every = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, 8), [0] * 8))
                found += [builder.call(fma, [given[part], every, totals[len(found) + part]]) for part in parts]
            following = builder.add(row, I64(1))
            row.add_incoming(following, loop)
            for total, each in zip(totals, found, strict=True):
                total.add_incoming(each, loop)
            builder.cbranch(builder.icmp_signed("<", following, rows), loop, after)
            builder.position_at_end(after)
            for (item, part), each in zip(places, found, strict=True):
                builder.store(each, at(out, out_stride, I64(item), 32 * part), align=4)
            return context.get_dummy_value()

        return types.void(data, *[types.int64] * 7), code

    return made


dots_1, dots_2, dots_3, dots_4, dots_5, dots_6 = (dots(1, rows, LANES, AHEAD_BYTES) for rows in range(1, 7))
dots_2_3 = dots(2, 3, LANES, AHEAD_BYTES)
key_1, key_4 = (dots(keys, 1, KEY_LANES, 0) for keys in (1, 4))
key_1_4, key_2_4 = (dots(keys, ITEMS, KEY_LANES, 0) for keys in (1, 2))
weigh_8, weigh_32 = (weigh(lanes, 1) for lanes in (8, 32))
weigh_8_4, weigh_16_4, weigh_24_4 = (weigh(lanes, ITEMS) for lanes in (8, 16, 24))


# ---- the kernels ----


@njit(fastmath={"contract"}, error_model="numpy")  # type: ignore[untyped-decorator]
def exp(x: Any) -> Any:
    """e ** x of a float32, within 2 units in the last place; 0 below -87."""
    y = min(max(x, F(-87)), F(88))
    n = np.floor(y * F(1.44269504) + F(0.5))
    r = (y - n * F(0.693359375)) - n * F(-2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    found = (p * r * r + r + F(1)) * two_to(np.int32(n))
    return F(0) if x < F(-87) else found


def product(data: Any) -> None:
    """x [rows, inputs] @ weight [outputs, inputs].T + added; ``copy``: place for x as float32, 0 where it is, of each
    thread its ``own``, or one of all.
    """
    w = words(data)
    x, x_stride, weight, weight_stride, added, added_stride = w[0], w[1], w[2], w[3], w[4], w[5]
    out, out_stride, rows, inputs, outputs, copy, copy_stride, own = w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13]
    me, team = np.int64(thread()), np.int64(threads())
    if copy and not own:
        _widen(data, x, x_stride, copy, copy_stride, inputs, me, rows, team)
        barrier()
        x, x_stride = copy, copy_stride
    elif copy:
        copy += me * rows * copy_stride
        _widen(data, x, x_stride, copy, copy_stride, inputs, 0, rows, 1)
        x, x_stride = copy, copy_stride
    output, last = outputs * me // team, outputs * (me + 1) // team
    _multiply(
        data, x, x_stride, weight, weight_stride, added, added_stride, out, out_stride, rows, inputs, output, last
    )


def grouped(data: Any) -> None:
    """Products of several weights [groups, outputs, inputs], each with its rows of x, side by side; ``ends``: of each
    group's. Row r is row ``index[r]`` of x, or itself where index is 0; ``copy``: place for all as float32, or 0.
    """
    w = words(data)
    x, x_stride, index, weights, group_stride, weight_stride, ends = w[0], w[1], w[2], w[3], w[4], w[5], w[6]
    out, out_stride, rows, groups, inputs, outputs = w[7], w[8], w[9], w[10], w[11], w[12]
    copy, copy_stride = w[13], w[14]
    me, team = np.int64(thread()), np.int64(threads())
    if copy:
        for row in range(me, rows, team):
            given = numbers(index)[row] if index else row
            _widen(data, x + given * x_stride, 0, copy + row * copy_stride, 0, inputs, 0, 1, 1)
        barrier()
        x, x_stride = copy, copy_stride
    output, last = outputs * me // team, outputs * (me + 1) // team
    for group in range(groups):
        first = numbers(ends)[group - 1] if group else 0
        few = numbers(ends)[group] - first
        if few:
            own, made = x + first * x_stride, out + first * out_stride
            weight = weights + group * group_stride
            _multiply(data, own, x_stride, weight, weight_stride, 0, 0, made, out_stride, few, inputs, output, last)


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _multiply(
    data: Any, x: Any, x_stride: Any, weight: Any, weight_stride: Any, added: Any, added_stride: Any, out: Any,
    out_stride: Any, rows: Any, inputs: Any, output: Any, last: Any,
) -> None:  # fmt: skip
    """Outputs from ``output`` to ``last`` of a product; x is float32."""
    whole, sums = inputs - inputs % LANES, room()
    # memory is read fastest as one stream; many rows are bound by arithmetic, and share what they load of x
    passes = (rows + MOST - 1) // MOST
    each = 3 if rows > MANY else (rows + passes - 1) // passes
    while output < last:
        pair = 2 if rows > MANY and output + 1 < last else 1
        start = weight + output * weight_stride
        for begun in range(0, rows, each):
            few = each if rows > MANY else min(each, rows - begun)
            row = min(begun, rows - few)  # the last of many are computed again
            _dots(data, start, weight_stride, x + row * x_stride, x_stride, sums, whole, pair, few)
            number = 0
            for j in range(row, row + few):
                made = elements(data, out + j * out_stride)
                for i in range(output, output + pair):
                    found = floats(sums)[number]
                    number += 1
                    if whole < inputs:
                        last_weights, last_x = elements(data, weight + i * weight_stride), floats(x + j * x_stride)
                        for k in range(whole, inputs):
                            found += wide(last_weights[k]) * last_x[k]
                    if added:
                        found += wide(elements(data, added + j * added_stride)[i])
                    put(made, i, found)
        output += pair


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _widen(
    data: Any, x: Any, x_stride: Any, copy: Any, copy_stride: Any, inputs: Any, first: Any, rows: Any, step: Any
) -> None:
    for row in range(first, rows, step):
        given, taken = elements(data, x + row * x_stride), floats(copy + row * copy_stride)
        for i in range(inputs):
            taken[i] = wide(given[i])


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _dots(
    data: Any, start: Any, stride: Any, x: Any, x_stride: Any, sums: Any, length: Any, pair: Any, few: Any
) -> None:
    """Sums [few, pair] of products over ``length``."""
    if length == 0:
        for number in range(few * pair):
            floats(sums)[number] = F(0)
    elif pair == 2:
        dots_2_3(data, start, stride, x, x_stride, sums, 8, length)
    elif few == 1:
        dots_1(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 2:
        dots_2(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 3:
        dots_3(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 4:
        dots_4(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 5:
        dots_5(data, start, stride, x, x_stride, sums, 4, length)
    else:
        dots_6(data, start, stride, x, x_stride, sums, 4, length)


def norm(data: Any) -> None:
    """x [rows, inputs] over its root mean square, times weight [inputs]; epsilon in ``EPSILON_UNIT``."""
    w = words(data)
    x, x_stride, weight, epsilon, out, out_stride, rows, inputs = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
    scales = elements(data, weight)
    for row in range(np.int64(thread()), rows, np.int64(threads())):
        given, made = elements(data, x + row * x_stride), elements(data, out + row * out_stride)
        total = F(0)
        for i in range(inputs):
            total += wide(given[i]) * wide(given[i])
        scale = F(1) / np.sqrt(total / F(inputs) + F(epsilon) * F(EPSILON_UNIT))
        for i in range(inputs):
            put(made, i, wide(given[i]) * scale * wide(scales[i]))


def gated(data: Any) -> None:
    """silu(gate) * up, of x [rows, 2 * channels]: gates, then ups."""
    w = words(data)
    x, x_stride, out, out_stride, rows, channels = w[0], w[1], w[2], w[3], w[4], w[5]
    for row in range(np.int64(thread()), rows, np.int64(threads())):
        gate, made = elements(data, x + row * x_stride), elements(data, out + row * out_stride)
        up = elements(data, x + row * x_stride + channels * size(data))
        for i in range(channels):
            value = wide(gate[i])
            put(made, i, value / (F(1) + exp(-value)) * wide(up[i]))


def top(data: Any) -> None:
    """The ``count`` highest of logits [rows, columns], best first and of equal ones the first: columns, log-softmax."""
    w = words(data)
    logits, stride, columns_out, scores_out, rows, columns, count = w[0], w[1], w[2], w[3], w[4], w[5], w[6]
    for row in range(np.int64(thread()), rows, np.int64(threads())):
        given = elements(data, logits + row * stride)
        best, score = numbers(columns_out + row * count * 8), floats(scores_out + row * count * 4)
        for place in range(count):
            best[place], score[place] = 0, F(-np.inf)
        for column in range(columns):
            value, place = wide(given[column]), count - 1
            if value > score[place]:
                while place > 0 and value > score[place - 1]:
                    best[place], score[place] = best[place - 1], score[place - 1]
                    place -= 1
                best[place], score[place] = column, value
        high, total = score[0], F(0)
        for column in range(columns):
            total += exp(wide(given[column]) - high)
        for place in range(count):
            score[place] = (score[place] - high) - np.log(total)


def attend(data: Any) -> None:
    """Rotate, store, attend; what is in qkv [W, h + 2k, D] is rotated in place."""
    w = words(data)
    qkv, rotary, rotary_plane, rows, per_sequence = w[0], w[1], w[2], w[3], w[4]
    heads, kv_heads, dims = w[5], w[6], w[7]
    cache, sequence_stride, row_stride, every, written, first_written = w[8], w[9], w[10], w[11], w[12], w[13]
    seen, tree, bias, bias_sequence, bias_row, out, scratch = w[14], w[15], w[16], w[17], w[18], w[19], w[20]
    me, team = np.int64(thread()), np.int64(threads())
    head_bytes, all_heads, grouped = dims * size(data), heads + 2 * kv_heads, heads // kv_heads
    place, items = scratch + me * ITEMS * (2 * dims + seen) * 4, per_sequence * grouped
    for own in range(me, kv_heads, team):  # a head of the cache with its query heads: no thread waits for another
        for row in range(rows):
            given, cosines = qkv + row * all_heads * head_bytes, rotary + row * head_bytes
            for head in range(own * grouped, (own + 1) * grouped):
                _rotate(data, given + head * head_bytes, cosines, cosines + rotary_plane, dims)
            _rotate(data, given + (heads + own) * head_bytes, cosines, cosines + rotary_plane, dims)
            if written:
                kept = every + numbers(written)[row] * row_stride
            else:
                kept = first_written + row // per_sequence * sequence_stride + row % per_sequence * row_stride
            for both in range(own, 2 * kv_heads, kv_heads):  # its key, and its value
                target = elements(data, kept + both * head_bytes)
                source = elements(data, given + (heads + both) * head_bytes)
                for i in range(dims):
                    target[i] = source[i]
        for sequence in range(rows // per_sequence):
            first_row = sequence * per_sequence
            begun = 0
            while begun < items:
                count = ITEMS if begun + 2 < items else 1
                _attend_some(
                    data,
                    qkv + (first_row * all_heads + own * grouped) * head_bytes,
                    all_heads * head_bytes,
                    cache + sequence * sequence_stride + own * head_bytes,
                    kv_heads * head_bytes,
                    row_stride,
                    bias + sequence * bias_sequence,
                    bias_row,
                    out + (first_row * heads + own * grouped) * head_bytes,
                    heads * head_bytes,
                    grouped,
                    begun,
                    items,
                    count,
                    seen,
                    tree,
                    dims,
                    place,
                )
                begun += count


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _rotate(data: Any, head: Any, cosine: Any, sine: Any, dims: Any) -> None:
    x, cosines, sines, half = elements(data, head), elements(data, cosine), elements(data, sine), dims // 2
    for i in range(half):
        low, high = wide(x[i]), wide(x[i + half])
        put(x, i, low * wide(cosines[i]) + high * wide(sines[i]))
        put(x, i + half, high * wide(cosines[i + half]) + low * wide(sines[i + half]))


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _attend_some(
    data: Any, q: Any, q_row: Any, keys: Any, to_values: Any, stride: Any, bias: Any, bias_row: Any, out: Any,
    out_row: Any, grouped: Any, begun: Any, items: Any, count: Any, seen: Any, tree: Any, dims: Any, place: Any,
) -> None:  # fmt: skip
    """The items from ``begun`` on, ``count`` of them: one, or ITEMS, the last of all again where fewer are left.

    An item is one of ``grouped`` heads of a row. ``place``: of each the query, the sum of values, the scores, float32.
    """
    own = 4 * (2 * dims + seen)
    scale = F(1) / np.sqrt(F(dims))
    for number in range(count):
        item, query = min(begun + number, items - 1), floats(place + number * own)
        given = elements(data, q + item // grouped * q_row + item % grouped * dims * size(data))
        for i in range(dims):
            query[i] = wide(given[i]) * scale
    _multiply_keys(data, place, keys, stride, place + 8 * dims, own, count, seen, dims)
    for number in range(count):
        item = min(begun + number, items - 1)
        weight = _soften(data, place + number * own + 8 * dims, bias + item // grouped * bias_row, seen)
        floats(place + number * own)[0] = weight  # the query has been used
    _sum_values(data, place + 8 * dims, own, keys + to_values, stride, place + 4 * dims, count, seen, tree, dims)
    for number in range(count):
        item, weight, total = min(begun + number, items - 1), floats(place + number * own)[0], place + number * own
        made = elements(data, out + item // grouped * out_row + item % grouped * dims * size(data))
        for i in range(dims):
            put(made, i, floats(total)[dims + i] / weight)


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _soften(data: Any, scores: Any, bias: Any, seen: Any) -> Any:
    """Scores with their bias -> exp(score - the highest); their sum, which is the same in any order."""
    score, hidden, high = floats(scores), elements(data, bias), F(-np.inf)
    for column in range(seen):
        found = score[column] + wide(hidden[column])
        score[column] = found
        high = max(high, found)
    base, weight = (high if high > F(-3e38) else F(0)), np.int64(0)
    for column in range(seen):
        chance = exp(score[column] - base)
        score[column] = chance
        weight += np.int64(np.int32(chance * F(UNIT) + F(0.5)))
    return F(weight) / F(UNIT)


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _multiply_keys(
    data: Any, queries: Any, keys: Any, stride: Any, scores: Any, own: Any, count: Any, seen: Any, dims: Any
) -> None:
    """Scores of one query, or of ITEMS that lie ``own`` bytes apart, as their scores do."""
    whole, column, most = dims - dims % KEY_LANES, 0, (4 if count == 1 else 2)
    while column < seen:
        few, first, place = (most if column + most <= seen else 1), keys + column * stride, scores + 4 * column
        if whole == 0:
            for item in range(count):
                for number in range(few):
                    floats(place + item * own)[number] = F(0)
        elif count == 1 and few == 4:
            key_4(data, first, stride, queries, 0, place, 0, whole)
        elif count == 1:
            key_1(data, first, stride, queries, 0, place, 0, whole)
        elif few == 2:
            key_2_4(data, first, stride, queries, own, place, own, whole)
        else:
            key_1_4(data, first, stride, queries, own, place, own, whole)
        if whole < dims:
            for item in range(count):
                for number in range(few):
                    key = elements(data, first + number * stride)
                    for i in range(whole, dims):
                        floats(place + item * own)[number] += floats(queries + item * own)[i] * wide(key[i])
        column += few


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _sum_values(
    data: Any, weights: Any, own: Any, values: Any, stride: Any, totals: Any, count: Any, seen: Any, tree: Any,
    dims: Any,
) -> None:  # fmt: skip
    """Values, each times its weight, of one item or of ITEMS that lie ``own`` bytes apart, as the sums do.

    First those of the sequence, then the ``tree``'s, whose rows lie before it: as they will lie when they are kept.
    """
    for item in range(count):
        for i in range(dims):
            floats(totals + item * own)[i] = F(0)
    if tree < seen:
        _add_values(data, weights + 4 * tree, own, values + tree * stride, stride, totals, count, seen - tree, dims)
    if tree > 0:
        _add_values(data, weights, own, values, stride, totals, count, tree, dims)


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _add_values(
    data: Any, weights: Any, own: Any, values: Any, stride: Any, totals: Any, count: Any, seen: Any, dims: Any
) -> None:
    """The same of rows one after the other, beside what has been summed."""
    start = 0
    while start < dims:
        address, total, left = values + start * size(data), totals + 4 * start, dims - start
        if count == 1 and left >= 32:
            weigh_32(data, address, stride, weights, own, total, own, seen)
            start += 32
        elif count == 1 and left >= 8:
            weigh_8(data, address, stride, weights, own, total, own, seen)
            start += 8
        elif left >= 24:
            weigh_24_4(data, address, stride, weights, own, total, own, seen)
            start += 24
        elif left >= 16:
            weigh_16_4(data, address, stride, weights, own, total, own, seen)
            start += 16
        elif left >= 8:
            weigh_8_4(data, address, stride, weights, own, total, own, seen)
            start += 8
        else:
            for item in range(count):
                _add_one(data, weights + item * own, address, stride, total + item * own, seen)
            start += 1


@njit(fastmath={"contract"})  # type: ignore[untyped-decorator]
def _add_one(data: Any, weights: Any, values: Any, stride: Any, total: Any, seen: Any) -> None:
    """One element of each row; in the order of the rows."""
    found, weight = floats(total)[0], floats(weights)
    for column in range(seen):
        found += weight[column] * wide(elements(data, values + column * stride)[0])
    floats(total)[0] = found
