"""Lets products of Triton's interpreter have the same bits wherever a row or a column is, as on a GPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter


@pytest.fixture(autouse=True, scope="package")
def products_in_float64() -> Iterator[None]:
    """Sum products in float64 and round once: in numpy the order of a sum depends on the shape and the processor."""
    own = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        wide = own(self, _widened(a), _widened(b), _widened(d), *precision)
        return interpreter.TensorHandle(wide.data.astype(d.data.dtype), d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield


def _widened(operand: Any) -> Any:
    if operand.data.dtype not in (np.float16, np.float32):
        return operand
    return interpreter.TensorHandle(operand.data.astype(np.float64), tl.float64)
