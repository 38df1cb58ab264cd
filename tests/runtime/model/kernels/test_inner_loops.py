"""The inner loops in LLVM IR, each compiled alone, for every shape that the kernels use."""

import ctypes
from typing import NamedTuple

import pytest
import torch
from numba import cfunc
from numba.core import types
from torch import Tensor

from runtime.model.kernels import attention, products
from runtime.model.kernels.attention import ITEMS, KEY_LANES
from runtime.model.kernels.elements import ELEMENTS, arguments_of
from runtime.model.kernels.products import LANES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DOTS = [
    *((products, f"dots_{rows}", 1, rows, LANES) for rows in range(1, 7)),
    (products, "dots_2_3", 2, 3, LANES),
    (attention, "key_1", 1, 1, KEY_LANES),
    (attention, "key_4", 4, 1, KEY_LANES),
    (attention, "key_1_4", 1, ITEMS, KEY_LANES),
    (attention, "key_2_4", 2, ITEMS, KEY_LANES),
]
"""Module, name, outputs, rows and lanes of each loop of dot products."""
WEIGH = [
    ("weigh_8", 8, 1),
    ("weigh_32", 32, 1),
    ("weigh_8_4", 8, ITEMS),
    ("weigh_16_4", 16, ITEMS),
    ("weigh_24_4", 24, ITEMS),
]
"""Name, lanes and items of each weighted sum."""


class Seven(NamedTuple):
    """The arguments of an inner loop."""

    left: int
    left_stride: int
    right: int
    right_stride: int
    out: int
    out_stride: int
    length: int


load = arguments_of(Seven)


def call(loop, dtype: torch.dtype, left: Tensor, right: Tensor, out: Tensor, length: int) -> None:  # type: ignore[no-untyped-def]
    """Compile an inner loop and call it on rows of three matrices."""

    def kernel(data):  # type: ignore[no-untyped-def]
        a = load(data)
        loop(data, a.left, a.left_stride, a.right, a.right_stride, a.out, a.out_stride, a.length)

    compiled = cfunc(types.void(types.CPointer(ELEMENTS[dtype])), error_model="numpy")(kernel)
    matrices = [word for m in (left, right, out) for word in (m.data_ptr(), m.stride(0) * m.itemsize)]
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)((ctypes.c_int64 * 7)(*matrices, length))


def seeded(rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random rows with a stride larger than their width."""
    values = torch.randn((rows, width + 3), generator=torch.Generator().manual_seed(rows * 1000 + width))
    return values.to(dtype)[:, :width]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("module", "name", "outputs", "rows", "lanes"), DOTS)
def test_dot_products(dtype: torch.dtype, module: object, name: str, outputs: int, rows: int, lanes: int) -> None:
    for length in (lanes, 7 * lanes):
        weights, x = seeded(outputs, length, dtype), seeded(rows, length)
        out = torch.full((rows, outputs + 1), 77.0)
        call(getattr(module, name), dtype, weights, x, out, length)
        exact = x.double() @ weights.double().T
        assert (out[:, :outputs].double() - exact).abs().max() < 1e-5
        assert (out[:, outputs:] == 77).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "lanes", "items"), WEIGH)
def test_sums_of_rows_by_weight(dtype: torch.dtype, name: str, lanes: int, items: int) -> None:
    """Rows are added to the output in order: bit for bit the sum of one row after the other."""
    rows = 5
    values, weights, start = seeded(rows, lanes, dtype), seeded(items, rows), seeded(items, lanes + 1)
    out = start.clone()
    call(getattr(attention, name), dtype, values, weights, out, rows)
    exact = start[:, :lanes].double() + weights.double() @ values.double()
    assert (out[:, :lanes].double() - exact).abs().max() < 1e-5
    assert torch.equal(out[:, lanes:], start[:, lanes:])
    one_by_one = start.clone()
    for row in range(rows):
        call(getattr(attention, name), dtype, values[row : row + 1], weights[:, row : row + 1], one_by_one, 1)
    assert torch.equal(one_by_one, out)
