"""AMX as Numba sees it: tiles of the processor, numbered 0 to 7, and transposition of their rows.

A tile has up to 16 rows of up to 64 bytes. ``dot(c, a, b)`` adds to tile c, float32 [outputs, rows], the products of
tile a, bfloat16 [outputs, 32], and tile b, which has the pairs of 32 elements of each row of x: [16 pairs, rows, 2].
For each output and row it sums the products of the first elements of the pairs in their order, and those of the second
ones, and adds the sum of both to the tile: an order that depends neither on the tile's sizes nor on which of its rows
and columns a result is.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.elements import I8, I32, I64, POINTER, function, octets, pointer, prefetch, reserved
from runtime.model.kernels.subroutines import subroutine

TILE_ROWS = 16
"""Rows of a tile."""
TILE_BYTES = 64
"""Bytes of a row of a tile."""
STEP = 32
"""Elements of a row that a tile has."""
FETCHED = 8
"""Lines of which one is prefetched. The processor itself then fetches those behind it into the second level of cache;
more prefetches would fill the buffers through which the first level is loaded, as a tile is 16 of its lines."""
TILE = TILE_ROWS * TILE_BYTES
"""Bytes of a tile."""
SUMS, WEIGHTS, ROWS = (0, 1, 2, 3), (4, 5), (6, 7)
"""Numbers of the tiles with sums, weights and rows of x."""
PALETTE = 1
"""The layout of tiles: 8 of 16 rows of 64 bytes."""
COLUMNS_AT, ROWS_AT = 16, 48
"""Where a configuration of 64 bytes has the bytes of the rows of each tile, uint16, and their number, uint8."""

stack_tile = reserved(TILE // 4)
two_stack_tiles, four_stack_tiles = reserved(2 * TILE // 4), reserved(4 * TILE // 4)


def load_tile(tile: int) -> Any:
    """Return an intrinsic that loads a tile: address and stride of its rows."""

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, address: Any, stride: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            called = function(builder, ir.VoidType(), [I8, POINTER, I64], "llvm.x86.tileloadd64")
            builder.call(called, [I8(tile), pointer(builder, args[0]), args[1]])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return load


def store_tile(tile: int) -> Any:
    """Return an intrinsic that stores a tile: address and stride of its rows."""

    @intrinsic  # type: ignore[untyped-decorator]
    def store(typing: Any, address: Any, stride: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            called = function(builder, ir.VoidType(), [I8, POINTER, I64], "llvm.x86.tilestored64")
            builder.call(called, [I8(tile), pointer(builder, args[0]), args[1]])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return store


def zero_tiles(count: int) -> Any:
    """Return an intrinsic that makes the first ``count`` tiles zero."""

    @intrinsic  # type: ignore[untyped-decorator]
    def zero(typing: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            for tile in range(count):
                builder.call(function(builder, ir.VoidType(), [I8], "llvm.x86.tilezero"), [I8(tile)])
            return context.get_dummy_value()

        return types.void(), code

    return zero


def dot(total: int, weights: int, rows: int, instruction: str = "tdpbf16ps") -> Any:
    """Return an intrinsic that adds to tile ``total`` the products of two others."""

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(typing: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            called = function(builder, ir.VoidType(), [I8] * 3, f"llvm.x86.{instruction}")
            builder.call(called, [I8(total), I8(weights), I8(rows)])
            return context.get_dummy_value()

        return types.void(), code

    return multiply


@intrinsic  # type: ignore[untyped-decorator]
def load_configuration(typing: Any, address: Any) -> Any:
    """Configure the tiles of this thread by 64 bytes at an address, and make them zero."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        called = function(builder, ir.VoidType(), [POINTER], "llvm.x86.ldtilecfg")
        builder.call(called, [pointer(builder, args[0])])
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def release_tiles(typing: Any) -> Any:
    """Release the tiles of this thread, so that the system no longer keeps their contents for it."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.call(function(builder, ir.VoidType(), [], "llvm.x86.tilerelease"), [])
        return context.get_dummy_value()

    return types.void(), code


@subroutine(apart=True)
def configure(outputs: Any, rows: Any) -> None:
    """Configure tiles of sums [outputs, rows], weights [outputs, STEP] and rows of x [STEP / 2, rows, 2]."""
    place = stack_tile()
    word = octets(place)
    for i in range(TILE_BYTES):
        word[i] = 0
    word[0] = PALETTE
    for tile in range(8):
        word[COLUMNS_AT + 2 * tile] = TILE_BYTES if tile in WEIGHTS else 4 * rows
        word[ROWS_AT + tile] = TILE_ROWS if tile in ROWS else outputs
    load_configuration(place)


def prefetched(lines: int) -> Any:
    """Return an intrinsic that prefetches, from an address on, one of each FETCHED of ``lines`` lines of the cache."""

    @intrinsic  # type: ignore[untyped-decorator]
    def fetch(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            for line in range(0, lines, FETCHED):
                prefetch(builder, builder.add(args[0], I64(TILE_BYTES * line)))
            return context.get_dummy_value()

        return types.void(types.int64), code

    return fetch


@intrinsic  # type: ignore[untyped-decorator]
def turn_rows(typing: Any, table: Any, offset: Any, target: Any, stride: Any) -> Any:
    """Transpose 16 rows of 16 words of 32 bits.

    ``table``: address of the int64 addresses of the rows, to each of which ``offset`` is added; ``target``, ``stride``:
    of the results, which are stored in their order, 64 bytes each, so that one covers the end of another where the
    stride is less.
    """

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        table, offset, target, stride = args
        rows = []
        for number in range(16):
            row = builder.load(pointer(builder, builder.add(table, I64(8 * number))), typ=I64, align=8)
            rows.append(_loaded(builder, builder.add(row, offset)))
        _store_rows(builder, transposed(builder, rows), target, stride)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


@intrinsic  # type: ignore[untyped-decorator]
def turn_tile(typing: Any, place: Any) -> Any:
    """Transpose 16 rows of 16 words of 32 bits in their place."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = [_loaded(builder, builder.add(args[0], I64(TILE_BYTES * number))) for number in range(16)]
        _store_rows(builder, transposed(builder, rows), args[0], I64(TILE_BYTES))
        return context.get_dummy_value()

    return types.void(types.int64), code


def transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """Return the 16 columns of 16 vectors of 16 words.

    Words, then pairs of words, are interleaved within quarters of 128 bits, and quarters moved as a whole: shuffles
    that AVX-512 has instructions for.
    """

    def shuffled(left: Any, right: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, 16), places))

    def interleaved(first: list[int]) -> list[int]:
        """Return the lanes of all quarters, of those of the first one."""
        return [lane + 4 * quarter for quarter in range(4) for lane in first]

    words = []  # of rows 4i … 4i + 3: 4 vectors, each with the columns j, j + 4, j + 8, j + 12 of these rows
    for first in range(0, 16, 4):
        a, b, c, d = rows[first : first + 4]
        low, high = interleaved([0, 16, 1, 17]), interleaved([2, 18, 3, 19])
        pairs = shuffled(a, b, low), shuffled(a, b, high), shuffled(c, d, low), shuffled(c, d, high)
        for one, other in ((pairs[0], pairs[2]), (pairs[1], pairs[3])):
            words.append(shuffled(one, other, interleaved([0, 1, 16, 17])))
            words.append(shuffled(one, other, interleaved([2, 3, 18, 19])))

    def quarters(left: Any, right: Any, chosen: tuple[int, int]) -> Any:
        """Return two quarters of each vector."""
        places = [16 * side + 4 * quarter + lane for side in (0, 1) for quarter in chosen for lane in range(4)]
        return shuffled(left, right, places)

    columns: list[Any] = [None] * 16
    for j in range(4):
        parts = [words[4 * i + j] for i in range(4)]
        even = quarters(parts[0], parts[1], (0, 2)), quarters(parts[2], parts[3], (0, 2))
        odd = quarters(parts[0], parts[1], (1, 3)), quarters(parts[2], parts[3], (1, 3))
        columns[j], columns[j + 8] = quarters(*even, (0, 2)), quarters(*even, (1, 3))
        columns[j + 4], columns[j + 12] = quarters(*odd, (0, 2)), quarters(*odd, (1, 3))
    return columns


def _loaded(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.load(pointer(builder, address), typ=ir.VectorType(I32, 16), align=4)


def _store_rows(builder: ir.IRBuilder, rows: list[Any], target: Any, stride: Any) -> None:
    for number, row in enumerate(rows):
        builder.store(row, pointer(builder, builder.add(target, builder.mul(stride, I64(number)))), align=4)
