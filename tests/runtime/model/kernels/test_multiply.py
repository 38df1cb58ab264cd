"""Products as processors of 16 and of 32 vector registers do them, compared on this one."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from numba import cfunc
from numba.core import types

from runtime.model.kernels.arguments import Product
from runtime.model.kernels.elements import LANES, arguments_of
from runtime.model.kernels.multiply import multiply_in_blocks, multiply_narrow, multiply_wide

load = arguments_of(Product)


def compiled(multiply: Any) -> tuple[Any, Callable[[Any], None]]:
    """Compile a multiplication of all outputs for float32; return what holds the code, and the code."""

    def kernel(data):  # type: ignore[no-untyped-def]
        a = load(data)
        multiply(data, a, a.x, a.x_stride, 0, a.outputs)

    code = cfunc(types.void(types.CPointer(types.float32)), error_model="numpy")(kernel)
    return code, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address)


def test_all_ways_of_multiplying_have_the_same_bits() -> None:
    """Whatever is multiplied at once: few rows, many, long ones in parts, a remainder, one output, blocks of rows."""
    others = multiply_narrow if LANES == 16 else multiply_wide
    ways = [compiled(multiply) for multiply in (others, multiply_in_blocks)]  # the latter has this processor's own way
    for inputs, outputs in ((5, 3), (203, 1), (203, 2), (64, 501), (3001, 19)):
        generator = torch.Generator().manual_seed(inputs)
        x, weight = (torch.randn(n, inputs, generator=generator) for n in (100, outputs))
        added = torch.randn(100, outputs, generator=generator)
        for rows in (*range(1, 14), 30, 100):
            results = torch.empty(len(ways), rows, outputs)
            for result, (_, run) in zip(results, ways, strict=True):
                words = Product(
                    x=x.data_ptr(), x_stride=4 * inputs, weight=weight.data_ptr(), weight_stride=4 * inputs,
                    added=added.data_ptr(), added_stride=4 * outputs, out=result.data_ptr(), out_stride=4 * outputs,
                    rows=rows, inputs=inputs, outputs=outputs, widened=0, widened_stride=0, widened_per_thread=0,
                )  # fmt: skip
                run((ctypes.c_int64 * len(words))(*words))
            assert all(torch.equal(results[0], other) for other in results[1:])
            exact = x[:rows].double() @ weight.double().T + added[:rows].double()
            assert (results[0].double() - exact).abs().max() < 1e-4 * inputs**0.5
