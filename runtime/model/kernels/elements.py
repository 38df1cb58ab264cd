"""Elements of float32, bfloat16, float16 and, in sums over ranks, float64 in compiled code.

Builders and intrinsics that Numba does not have.

Numba has no 16-bit floats on a CPU. A kernel is compiled for a pointer type that stands for the dtype: bfloat16 is
uint16 and float16 is int16 there. An address is an int64; a function here makes it a pointer.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.model.kernels.processor import lanes, multiplies_pairs, multiplies_panels, multiplies_tiles

F = np.float32
F32, F64 = ir.FloatType(), ir.DoubleType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
POINTER = ir.PointerType()
FLOATING = frozenset({"reassoc", "contract", "nsz", "arcp", "nnan"})
"""Fast-math flags of the kernels: sums may be taken in another order than written, though always in the same one;
infinities keep their meaning."""
LANES = lanes()
"""Float32 values of a vector."""
LINE_BYTES = 64
"""Bytes of a line of the processor's cache."""
STACK_FLOATS = 32
"""Most sums that an inner loop of dot products leaves."""


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no type for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOAT = _BFloat()
ELEMENTS = {
    torch.float64: types.float64,
    torch.float32: types.float32,
    torch.bfloat16: types.uint16,
    torch.float16: types.int16,
}
"""The element type that stands for each dtype."""
CODE = types.int8
"""The element type of a KV cache in codes of int8."""
FLOAT8 = types.uint8
"""The element type of a KV cache in codes of float8_e4m3fn."""
CODE_UNIT = 256.0
"""Factor of codes of FLOAT8 when they are widened: scales are multiplied with it instead, exactly."""


# ---- LLVM builders, used by intrinsics here and by the inner loops ----


def widened(builder: ir.IRBuilder, value: Any, element: types.Type) -> Any:
    """Convert an element or a code, or a vector of them, to float32; float64 stays. Codes of FLOAT8: over CODE_UNIT."""

    def like(scalar: ir.Type) -> ir.Type:
        return ir.VectorType(scalar, value.type.count) if isinstance(value.type, ir.VectorType) else scalar

    if element in (types.float32, types.float64):
        return value
    if element == CODE:
        return builder.sitofp(value, like(F32))
    if element == FLOAT8:
        return _from_float8(builder, value, like)
    if element == types.int16:
        return builder.fpext(builder.bitcast(value, like(ir.HalfType())), like(F32))
    bits = builder.zext(value, like(I32))
    half = ir.Constant(bits.type, [16] * bits.type.count if isinstance(bits.type, ir.VectorType) else 16)
    return builder.bitcast(builder.shl(bits, half), like(F32))


def narrowed(builder: ir.IRBuilder, value: Any, element: types.Type) -> Any:
    """Convert a float32, or a vector of them, to elements, rounded to nearest, ties to even; NaN and float64 stay."""

    def like(scalar: ir.Type) -> ir.Type:
        return ir.VectorType(scalar, value.type.count) if isinstance(value.type, ir.VectorType) else scalar

    def constant(number: int) -> Any:
        words = like(I32)
        return ir.Constant(words, [number] * words.count if isinstance(words, ir.VectorType) else number)

    if element in (types.float32, types.float64):
        return value
    if element == types.int16:
        return builder.bitcast(builder.fptrunc(value, like(ir.HalfType())), like(I16))
    if element == FLOAT8:
        return _to_float8(builder, value, like)
    bits = builder.bitcast(value, like(I32))
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
    quiet = builder.or_(bits, constant(1 << 22))
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(chosen, constant(16)), like(I16))


def _constant(kind: ir.Type, number: float) -> Any:
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _from_float8(builder: ir.IRBuilder, value: Any, like: Any) -> Any:
    """Convert float8_e4m3fn to float32, over CODE_UNIT: float16 has exponents that are 8 more with the same bits.

    A cache has no code that is NaN: of a head with a NaN the scale is (``kv_codes``).
    """
    words = like(I16)
    moved = builder.shl(builder.sext(value, words), _constant(words, 7))
    half = builder.bitcast(builder.and_(moved, _constant(words, 0xBFFF)), like(ir.HalfType()))
    return builder.fpext(half, like(F32))


def _to_float8(builder: ir.IRBuilder, value: Any, like: Any) -> Any:
    """Convert float32 to float8_e4m3fn, clamped to 448, rounded to nearest, ties to even; NaN stays.

    Below 2 ** -6, where float8 has steps of 2 ** -9, the sum with 2 ** 14 is rounded to them by the addition.
    """
    words = like(I32)
    bits = builder.bitcast(value, words)
    sign = builder.and_(builder.lshr(bits, _constant(words, 24)), _constant(words, 0x80))
    size = builder.and_(bits, _constant(words, 0x7FFFFFFF))
    most = _constant(words, 0x43E00000)
    kept = builder.select(builder.icmp_unsigned("<", size, most), size, most)
    summed = builder.fadd(builder.bitcast(kept, like(F32)), _constant(like(F32), 16384.0))
    small = builder.sub(builder.bitcast(summed, words), _constant(words, 141 << 23))
    odd = builder.and_(builder.lshr(kept, _constant(words, 20)), _constant(words, 1))
    rounded = builder.add(builder.sub(kept, _constant(words, (120 << 23) - 0x7FFFF)), odd)
    large = builder.lshr(rounded, _constant(words, 20))
    code = builder.select(builder.icmp_unsigned("<", kept, _constant(words, 121 << 23)), small, large)
    code = builder.select(builder.icmp_unsigned(">", size, _constant(words, 0x7F800000)), _constant(words, 0x7F), code)
    return builder.trunc(builder.or_(code, sign), like(I8))


def scalar_of(element: types.Type) -> ir.Type:
    """Return the LLVM type of an element, or of a code."""
    return {types.float32: F32, types.float64: F64, CODE: I8, FLOAT8: I8}.get(element, I16)


def pairs(element: types.Type) -> bool:
    """Return True where elements are multiplied in pairs; see ``processor.multiplies_pairs``."""
    return element == ELEMENTS[torch.bfloat16] and multiplies_pairs(torch.bfloat16)


def tiles(element: types.Type) -> bool:
    """Return True where tiles of elements are multiplied; see ``processor.multiplies_tiles``."""
    return element == ELEMENTS[torch.bfloat16] and multiplies_tiles(torch.bfloat16)


def panels(element: types.Type) -> bool:
    """Return True where panels of many rows are multiplied; see ``processor.multiplies_panels``."""
    return any(element == stands and multiplies_panels(dtype) for dtype, stands in ELEMENTS.items())


def pointer(builder: ir.IRBuilder, address: Any) -> Any:
    """Convert an int64 address to a pointer."""
    return builder.inttoptr(address, POINTER)


def chosen(builder: ir.IRBuilder, values: Any, lanes: Iterable[int]) -> Any:
    """Return some lanes of a vector."""
    order = list(lanes)
    return builder.shuffle_vector(values, values, ir.Constant(ir.VectorType(I32, len(order)), order))


def splat(builder: ir.IRBuilder, value: Any, lanes: int = LANES) -> Any:
    """Return a vector with a value in each lane."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, I32(0))
    return chosen(builder, first, [0] * lanes)


def held(builder: ir.IRBuilder, value: Any) -> Any:
    """Return an address or a vector of which LLVM knows nothing, so that it stays in a register of its own.

    Otherwise each address of a loop becomes a counter, which takes an instruction for every step.
    """
    kind = "r" if value.type == I64 else "x"
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", f"={kind},0", [value], side_effect=False)


def function(builder: ir.IRBuilder, result: ir.Type, arguments: list[ir.Type], name: str) -> Any:
    """Return one of LLVM's intrinsic functions."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def prefetch(builder: ir.IRBuilder, address: Any) -> None:
    """Prefetch a line, to be read, into the second level of cache."""
    called = function(builder, ir.VoidType(), [POINTER, I32, I32, I32], "llvm.prefetch.p0")
    builder.call(called, [pointer(builder, address), I32(0), I32(2), I32(1)])


# ---- intrinsics ----


def arguments_of(table: Any) -> Any:
    """Return an intrinsic that loads a kernel's arguments from its pointer as ``table``, a NamedTuple of int64."""
    record = types.NamedUniTuple(types.int64, len(table._fields), table)

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, data: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.load(args[0], typ=context.get_value_type(record), align=8)

        return record(data), code

    return load


def arguments_at(table: Any) -> Any:
    """Return an intrinsic that loads words at an address as ``table``, a NamedTuple of int64."""
    record = types.NamedUniTuple(types.int64, len(table._fields), table)

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.load(pointer(builder, args[0]), typ=context.get_value_type(record), align=8)

        return record(types.int64), code

    return load


@intrinsic  # type: ignore[untyped-decorator]
def run_kernel(typing: Any, data: Any, address: Any, arguments: Any) -> Any:
    """Run in this thread the kernel at an address, of the elements of ``data``, on a record of its arguments."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, entry, record = args
        words = cgutils.alloca_once_value(builder, record)
        called = builder.inttoptr(entry, ir.FunctionType(ir.VoidType(), [POINTER]).as_pointer())
        builder.call(called, [builder.bitcast(words, POINTER)])
        return context.get_dummy_value()

    return types.void(data, types.int64, arguments), code


def pointer_to(element: types.Type) -> Any:
    """Return an intrinsic that makes an address a pointer to one type of element."""
    pointers = types.CPointer(element)

    @intrinsic  # type: ignore[untyped-decorator]
    def cast(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(pointers))

        return pointers(types.int64), code

    return cast


numbers, floats, doubles = pointer_to(types.int64), pointer_to(types.float32), pointer_to(types.float64)
codes, octets, integers = pointer_to(CODE), pointer_to(types.uint8), pointer_to(types.int32)


@intrinsic  # type: ignore[untyped-decorator]
def elements(typing: Any, data: Any, address: Any) -> Any:
    """Make an address a pointer to elements, of the type that the kernel's pointer ``data`` has."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(data))

    return data(data, types.int64), code


def reserved(count: int) -> Any:
    """Return an intrinsic that reserves ``count`` float32 on the stack and returns their address."""

    @intrinsic  # type: ignore[untyped-decorator]
    def reserve(typing: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.ptrtoint(cgutils.alloca_once(builder, F32, size=count), I64)

        return types.int64(), code

    return reserve


stack_floats = reserved(STACK_FLOATS)


@intrinsic  # type: ignore[untyped-decorator]
def itemsize(typing: Any, data: Any) -> Any:
    """Return the bytes of an element."""
    width = data.dtype.bitwidth // 8
    return types.int64(data), lambda context, builder, signature, args: I64(width)


@intrinsic  # type: ignore[untyped-decorator]
def in_pairs(typing: Any, data: Any) -> Any:
    """Return whether elements are multiplied in pairs."""
    known = pairs(data.dtype)
    return types.boolean(data), lambda context, builder, signature, args: ir.Constant(ir.IntType(1), int(known))


@intrinsic  # type: ignore[untyped-decorator]
def in_tiles(typing: Any, data: Any) -> Any:
    """Return whether tiles of elements are multiplied."""
    known = tiles(data.dtype)
    return types.boolean(data), lambda context, builder, signature, args: ir.Constant(ir.IntType(1), int(known))


@intrinsic  # type: ignore[untyped-decorator]
def in_codes(typing: Any, data: Any) -> Any:
    """Return whether elements are codes, of int8 or float8_e4m3fn."""
    known = data.dtype in (CODE, FLOAT8)
    return types.boolean(data), lambda context, builder, signature, args: ir.Constant(ir.IntType(1), int(known))


@intrinsic  # type: ignore[untyped-decorator]
def in_float8(typing: Any, data: Any) -> Any:
    """Return whether elements are codes of float8_e4m3fn."""
    known = data.dtype == FLOAT8
    return types.boolean(data), lambda context, builder, signature, args: ir.Constant(ir.IntType(1), int(known))


@intrinsic  # type: ignore[untyped-decorator]
def wide(typing: Any, value: Any) -> Any:
    """Convert an element to float32."""
    return types.float32(value), lambda context, builder, signature, args: widened(builder, args[0], value)


@intrinsic  # type: ignore[untyped-decorator]
def put(typing: Any, data: Any, index: Any, value: Any) -> Any:
    """Store a float32 as element ``index`` of ``data``."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target = builder.gep(args[0], [args[1]], source_etype=scalar_of(data.dtype))
        builder.store(narrowed(builder, args[2], data.dtype), target, align=data.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def two_to(typing: Any, power: Any) -> Any:
    """Return 2 ** power as float32, for an int32 power between -126 and 127."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(args[0], I32(127)), I32(23)), F32)

    return types.float32(types.int32), code


@njit(fastmath={"contract"}, error_model="numpy")  # type: ignore[untyped-decorator]
def exp(x: Any) -> Any:
    """Return e ** x of a float32, within 2 units in the last place; 0 below -87.

    x = n * log(2) + r, with log(2) as the sum of two float32; e ** r by the polynomial of Cephes' expf.
    """
    y = min(max(x, F(-87)), F(88))
    n = np.floor(y * F(1.44269504) + F(0.5))
    r = (y - n * F(0.693359375)) - n * F(-2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    power = (p * r * r + r + F(1)) * two_to(np.int32(n))
    return F(0) if x < F(-87) else power
