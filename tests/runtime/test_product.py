"""Products through widened blocks against torch's own in float64."""

import pytest
import torch

from runtime.product import DIRECT_ROWS, WIDE_BYTES, product, wide_block

CPU = torch.device("cpu")
WIDE = torch.zeros(WIDE_BYTES // 4)


def seeded(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 768, 100), (3, 768, 1500), (16, 40, 7), (60, 3000, 300)])
def test_a_product_is_rounded_once(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    x, weight = seeded(rows, inputs, dtype=dtype), seeded(outputs, inputs, dtype=dtype)
    residual, bias = seeded(rows, outputs, dtype=dtype), seeded(1, outputs, dtype=dtype)
    exact = x.double() @ weight.double().T
    step = torch.finfo(dtype).eps
    for added in (None, residual, bias):
        expected = exact if added is None else exact + added.double()
        found = product(x, weight.t(), WIDE, added)
        assert found.dtype == dtype
        if rows > DIRECT_ROWS:
            assert ((found.double() - expected).abs() <= step * expected.abs() * 0.51 + 1e-3).all()
        torch.testing.assert_close(found.double(), expected, rtol=2 * step, atol=0.1)


def test_what_the_machine_multiplies_itself_is_not_widened() -> None:
    assert wide_block(torch.float32, CPU) is None
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (wide_block(torch.bfloat16, CPU) is None) == fast
    x, weight = seeded(9, 8, dtype=torch.float32), seeded(5, 8, dtype=torch.float32)
    assert torch.equal(product(x, weight.t(), None), torch.mm(x, weight.t()))
