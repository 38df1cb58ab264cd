"""Intrinsics on elements, each compiled alone, against torch's conversions and numpy's arithmetic."""

import ctypes
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numba import cfunc, njit
from numba.core import types

from runtime.model.kernels.elements import (
    ELEMENTS,
    arguments_of,
    elements,
    exp,
    floats,
    itemsize,
    numbers,
    put,
    stack_floats,
    two_to,
    wide,
)

HALVES = [torch.bfloat16, torch.float16]


class Conversion(NamedTuple):
    """Addresses of elements and of as many float32 values, and their number."""

    narrow: int
    single: int
    count: int


class Three(NamedTuple):
    """Three words in an order of their own."""

    last: int
    first: int
    middle: int


load_conversion, load_three = arguments_of(Conversion), arguments_of(Three)


def widen_all(data):  # type: ignore[no-untyped-def]
    """Convert every element to float32."""
    a = load_conversion(data)
    source, target = elements(data, a.narrow), floats(a.single)
    for i in range(a.count):
        target[i] = wide(source[i])


def narrow_all(data):  # type: ignore[no-untyped-def]
    """Convert every float32 to an element."""
    a = load_conversion(data)
    source, target = floats(a.single), elements(data, a.narrow)
    for i in range(a.count):
        put(target, i, source[i])


def describe(data):  # type: ignore[no-untyped-def]
    """Overwrite the three words with bytes per element, last - middle, and a value kept on the stack."""
    a, kept = load_three(data), floats(stack_floats())
    for i in range(8):
        kept[i] = np.float32(i)
    target = numbers(a.first)
    target[0], target[1], target[2] = itemsize(data), a.last - a.middle, np.int64(kept[7])


def call(kernel, dtype: torch.dtype, *words: int) -> None:  # type: ignore[no-untyped-def]
    """Compile a function of one pointer, as kernels are, and call it."""
    compiled = cfunc(types.void(types.CPointer(ELEMENTS[dtype])), error_model="numpy")(kernel)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)((ctypes.c_int64 * len(words))(*words))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_widened_as_torch_does(dtype: torch.dtype) -> None:
    """Convert all 65536 values, with zeros, subnormals, infinities and NaN."""
    narrow = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    single = torch.empty(1 << 16)
    call(widen_all, dtype, narrow.data_ptr(), single.data_ptr(), 1 << 16)
    assert torch.equal(single.view(torch.int32)[~narrow.isnan()], narrow.float().view(torch.int32)[~narrow.isnan()])
    assert torch.equal(single.isnan(), narrow.isnan())


@pytest.mark.parametrize("dtype", HALVES)
def test_float32_is_narrowed_to_nearest_ties_to_even_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    between = ((every[1:].double() + every[:-1].double()) / 2).float()  # exact: ties
    single = torch.cat([
        every, between, torch.nextafter(between, every[1:]), torch.nextafter(between, every[:-1]),
        torch.tensor([float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-45]),
    ])  # fmt: skip
    narrow = torch.empty(single.shape, dtype=dtype)
    call(narrow_all, dtype, narrow.data_ptr(), single.data_ptr(), single.numel())
    real = ~single.isnan()
    assert torch.equal(narrow.view(torch.int16)[real], single.to(dtype).view(torch.int16)[real])
    assert torch.equal(narrow.isnan(), ~real)


def test_float32_elements_are_unchanged() -> None:
    single, copy = torch.tensor([1.5, -0.0, 1e-45, float("inf")]), torch.empty(4)
    call(narrow_all, torch.float32, copy.data_ptr(), single.data_ptr(), 4)
    assert torch.equal(copy.view(torch.int32), single.view(torch.int32))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)])
def test_arguments_have_the_names_of_their_table(dtype: torch.dtype, size: int) -> None:
    out = torch.zeros(3, dtype=torch.int64)
    call(describe, dtype, *Three(last=9, first=out.data_ptr(), middle=4))
    assert out.tolist() == [size, 5, 7]


def test_powers_of_two_are_exact() -> None:
    power = njit(lambda n: two_to(np.int32(n)))
    assert [power(n) for n in (-126, -1, 0, 1, 127)] == [2.0**-126, 0.5, 1.0, 2.0, 2.0**127]


def test_exp_is_within_two_units_and_zero_below_what_float32_has() -> None:
    compute = njit(lambda x, out: [exp(x[i]) for i in range(x.size)])
    x = np.linspace(-87, 88, 20001, dtype=np.float32)
    values = np.array(compute(x, x), dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(values - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    assert compute(np.array([-87.5, -1e30, -np.inf, 0.0], dtype=np.float32), x) == [0.0, 0.0, 0.0, 1.0]
