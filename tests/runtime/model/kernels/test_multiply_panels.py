"""Products of many rows with panels of the weight, beside the same rows one by one."""

import pytest
import torch

from runtime.model import ops
from runtime.model.kernels.arguments import MANY_ROWS, STRIP_ROWS
from runtime.model.kernels.processor import has, multiplies_panels

SIZES = [(16, 32), (48, 33), (64, 100), (768, 113), (800, 130), (8112, 64), (8192, 64), (100, 64)]
HALVES = [(dtype, inputs, outputs) for dtype in (torch.bfloat16, torch.float16) for inputs, outputs in SIZES[1:4]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "inputs", "outputs"), [*((torch.float32, *sizes) for sizes in SIZES), *HALVES])
def test_a_row_has_the_bits_that_it_has_alone(dtype: torch.dtype, inputs: int, outputs: int, threads: int) -> None:
    """Whole panels and strips and others; rows too long for a panel, and of no whole number of steps."""
    generator, before = torch.Generator().manual_seed(inputs + outputs), torch.get_num_threads()
    most = MANY_ROWS + STRIP_ROWS + 1
    x, weight, added = (
        torch.randn(n, m, generator=generator).to(dtype)
        for n, m in ((most, inputs), (outputs, inputs), (most, outputs))
    )
    torch.set_num_threads(threads)
    try:
        alone = torch.cat([ops.product(x[row : row + 1], weight.t(), added[row : row + 1]) for row in range(most)])
        for rows in (MANY_ROWS - 1, MANY_ROWS, MANY_ROWS + 1, most):
            together = ops.product(x[:rows], weight.t(), added[:rows])
            assert torch.equal(together, alone[:rows])
            assert dtype != torch.float32 or torch.equal(ops.product(x[:rows], weight.t()) + added[:rows], together)
    finally:
        torch.set_num_threads(before)
    exact = x.double() @ weight.double().T + added.double()
    assert ((alone.double() - exact).abs() <= 1e-4 * inputs**0.5 + torch.finfo(dtype).eps * exact.abs()).all()


def test_rows_with_a_stride_are_multiplied_within_their_bounds() -> None:
    """Rows of x and of the weight with others between them, which are not read."""
    rows, inputs, outputs = MANY_ROWS + 5, 64, 80
    x, weight = torch.randn(rows, inputs + 16), torch.randn(outputs, inputs + 48)
    x[:, inputs:], weight[:, inputs:] = torch.nan, torch.nan
    own, matrix = x[:, :inputs], weight[:, :inputs]
    assert torch.equal(ops.product(own, matrix.t()), ops.product(own.contiguous(), matrix.contiguous().t()))


def test_where_panels_are_multiplied() -> None:
    """Of halves only where vectors have 8 lanes; scratch for x is of whole strips."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        panels = multiplies_panels(dtype)
        assert panels == (has("avx2", "fma") and (dtype == torch.float32 or not has("avx512f")))
        assert ops.packed_rows(MANY_ROWS - 1, dtype) == MANY_ROWS - 1
        assert ops.packed_rows(MANY_ROWS + 1, dtype) == MANY_ROWS + (STRIP_ROWS if panels else 1)
