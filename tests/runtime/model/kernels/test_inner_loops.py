"""The inner loops in LLVM IR, each compiled alone, for the shapes that the kernels use."""

import ctypes
from typing import Any, NamedTuple

import pytest
import torch
from numba import cfunc
from numba.core import types
from torch import Tensor

from runtime.model.kernels.elements import ELEMENTS, arguments_of
from runtime.model.kernels.inner_loops import LANES, dots, finish, part_dots, step, weigh
from runtime.model.kernels.processor import multiplies_pairs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Eight(NamedTuple):
    """The arguments of an inner loop, of which some are not used."""

    left: int
    left_stride: int
    right: int
    right_stride: int
    out: int
    out_stride: int
    length: int
    ahead: int


class Nine(NamedTuple):
    """The arguments of dot products in parts."""

    left: int
    left_stride: int
    right: int
    right_stride: int
    sums: int
    length: int
    begins: int
    out: int
    ahead: int


load, load_nine = arguments_of(Eight), arguments_of(Nine)


def call(loop: Any, words: int, dtype: torch.dtype, left: Tensor, right: Tensor, out: Tensor, length: int) -> None:
    """Compile an inner loop and call it on rows of three matrices."""

    def eight(data):  # type: ignore[no-untyped-def]
        a = load(data)
        loop(data, a.left, a.left_stride, a.right, a.right_stride, a.out, a.out_stride, a.length, a.ahead)

    def seven(data):  # type: ignore[no-untyped-def]
        a = load(data)
        loop(data, a.left, a.left_stride, a.right, a.right_stride, a.out, a.out_stride, a.length)

    def five(data):  # type: ignore[no-untyped-def]
        a = load(data)
        loop(data, a.left, a.right, a.right_stride, a.out, a.out_stride)

    kernel = {8: eight, 7: seven, 5: five}[words]
    compiled = cfunc(types.void(types.CPointer(ELEMENTS[dtype])), error_model="numpy")(kernel)
    matrices = [word for m in (left, right, out) for word in (m.data_ptr(), m.stride(0) * m.itemsize)]
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)((ctypes.c_int64 * 8)(*matrices, length, left.data_ptr()))


def seeded(rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random rows with a stride larger than their width."""
    values = torch.randn((rows, width + 3), generator=torch.Generator().manual_seed(rows * 1000 + width))
    return values.to(dtype)[:, :width]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_products_have_the_same_bits_in_every_shape(dtype: torch.dtype) -> None:
    """x is float32, or of elements where those are multiplied in pairs; results lie apart or behind each other."""
    length, at_once = 3 * step(ELEMENTS[dtype]), dots(1, 1)
    weights, x = seeded(4, length, dtype), seeded(6, length, dtype)
    x = x if multiplies_pairs(dtype) else x.float()
    exact, alone = x.double() @ weights.double().T, torch.empty(6, 4)
    for row in range(6):
        for output in range(4):
            call(at_once, 8, dtype, weights[output:], x[row:], alone[row:, output:], length)
    assert (alone.double() - exact).abs().max() < 2e-5
    for outputs, rows, apart in ((1, 3, True), (4, 1, True), (4, 4, True), (2, 5, False), (4, 6, False)):
        out = torch.full((rows, outputs + apart), 77.0)
        call(dots(outputs, rows, 2, apart=apart), 8, dtype, weights, x, out, length)
        assert torch.equal(out[:, :outputs], alone[:rows, :outputs])
        assert (out[:, outputs:] == 77).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "rows"), [(1, 9), (2, 3)])
def test_dot_products_in_parts_have_the_bits_of_the_whole(dtype: torch.dtype, outputs: int, rows: int) -> None:
    """Parts are of any number of steps, whole lines of the cache or not; sums are kept in between."""
    one, loop = step(ELEMENTS[dtype]), part_dots(outputs, rows, outputs)

    def nine(data):  # type: ignore[no-untyped-def]
        a = load_nine(data)
        loop(data, a.left, a.left_stride, a.right, a.right_stride, a.sums, a.length, a.begins, a.out, a.ahead)

    compiled = cfunc(types.void(types.CPointer(ELEMENTS[dtype])), error_model="numpy")(nine)
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    weights, x = seeded(outputs, 11 * one, dtype), seeded(rows, 11 * one, dtype)
    x = x if multiplies_pairs(dtype) else x.float()
    whole, sums = torch.empty(rows, outputs), torch.empty(rows * outputs, LANES)
    call(dots(outputs, rows), 8, dtype, weights, x, whole, 11 * one)
    for parts in ((11,), (5, 6), (1, 8, 2)):
        out = torch.full((rows, outputs), 77.0)
        for number, count in enumerate(parts):
            begin, end = one * sum(parts[:number]), one * sum(parts[: number + 1])
            matrices = [word for m in (weights, x) for word in (m[:, begin:].data_ptr(), m.stride(0) * m.itemsize)]
            last = out.data_ptr() if end == 11 * one else 0
            words = (*matrices, sums.data_ptr(), count * one, number == 0, last, weights.data_ptr())
            run((ctypes.c_int64 * 9)(*words))
        assert torch.equal(out, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "rows"), [(1, 1), (2, 3), (4, 5)])
def test_sums_are_rounded_once_after_something_is_added(dtype: torch.dtype, outputs: int, rows: int) -> None:
    sums = seeded(rows, outputs)[:, :outputs].contiguous()
    added, out = seeded(rows, outputs + 1, dtype), torch.full((rows, outputs + 1), 77.0, dtype=dtype)
    call(finish(outputs, rows), 5, dtype, sums, added, out, 0)
    assert torch.equal(out[:, :outputs], (sums + added[:, :outputs].float()).to(dtype))
    assert (out[:, outputs:] == 77).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vectors", "items"), [(1, 1), (4, 1), (2, 4)])
def test_sums_of_rows_by_weight(dtype: torch.dtype, vectors: int, items: int) -> None:
    """Rows are added to the output in order: bit for bit the sum of one row after the other."""
    rows, lanes, loop = 5, vectors * LANES, weigh(vectors, items)
    values, weights, start = seeded(rows, lanes, dtype), seeded(items, rows), seeded(items, lanes + 1)
    out = start.clone()
    call(loop, 7, dtype, values, weights, out, rows)
    exact = start[:, :lanes].double() + weights.double() @ values.double()
    assert (out[:, :lanes].double() - exact).abs().max() < 1e-5
    assert torch.equal(out[:, lanes:], start[:, lanes:])
    one_by_one = start.clone()
    for row in range(rows):
        call(loop, 7, dtype, values[row : row + 1], weights[:, row : row + 1], one_by_one, 1)
    assert torch.equal(one_by_one, out)
