"""Products with int8 weights of one scale for each output are exact sums of integers of x, rounded once."""

import math

import pytest
import torch
from torch import Tensor

from plans.schema import WeightFormat
from runtime.model import weights
from runtime.model.kernels import int8

FORM = WeightFormat(code="int8", group=None, zeros=False, scale="bfloat16")
exactly = pytest.mark.skipif(not int8.AVAILABLE, reason="the processor multiplies no bytes in vectors of 64")


def random_weight(outputs: int, inputs: int, seed: int) -> weights.Coded:
    """Return codes of the whole range, and scales."""
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (outputs, inputs), dtype=torch.uint8, generator=rng)
    scales = (torch.rand((outputs, 1), generator=rng) + 0.1).to(torch.bfloat16)
    return weights.Coded(form=FORM, codes=codes, scales=scales, zeros=None, inputs=inputs)


def by_integers(x: Tensor, weight: weights.Coded) -> Tensor:
    """Return the product by the description in ``kernels.int8``, with Python's integers."""
    rows = []
    for row in x.double():
        exponent = max(math.frexp(float(row.abs().max()))[1], 31 - 126)
        integers = [int(value) for value in torch.round(row * 2.0 ** (30 - exponent)).tolist()]
        totals = [sum((c - 128) * i for c, i in zip(own, integers, strict=True)) for own in weight.codes.tolist()]
        rows.append(torch.tensor(totals, dtype=torch.float64) * 2.0 ** (exponent - 30) * weight.scales[:, 0].double())
    return torch.stack(rows).float().to(x.dtype)


@exactly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 64, 95, 96, 100, 577, 640])
def test_a_product_is_that_of_integers_whatever_the_numbers_of_rows_and_outputs_are(
    inputs: int, dtype: torch.dtype
) -> None:
    """With magnitudes of x from 2 ** -12 to 2 ** 12, and a row of zeros."""
    rng = torch.Generator().manual_seed(inputs)
    x = (torch.randn((35, inputs), generator=rng) * torch.exp2(torch.randint(-12, 13, (35, 1), generator=rng))).to(
        dtype
    )
    x[2] = 0
    weight = random_weight(35, inputs, inputs)
    expected = by_integers(x, weight)
    for outputs in (1, 2, 3, 4, 5, 16, 17, 35):
        for rows in (1, 2, 3, 4, 5, 7, 10, 16, 19, 35):
            assert torch.equal(weights.product(x[:rows], weight.rows(0, outputs)), expected[:rows, :outputs])


@pytest.mark.parametrize("unit", [2.0**-140, 2.0**-100, 1.0, 2.0**100])
def test_the_error_is_a_little_of_the_largest_value_of_the_row(unit: float) -> None:
    """Also where the largest has weight zero, and where values are almost the least of float32.

    Without products of bytes codes are float32, 128 too many each, which a sum begins with -128 times x for.
    """
    weight = random_weight(20, 96, 0)
    weight.codes[:, 50] = 128
    x = torch.randn((5, 96), generator=torch.Generator().manual_seed(1)) * 1e-2 * unit
    x[:, 50] = 1e4 * unit
    values = (weight.codes.double() - 128) * weight.scales.double()
    exact = x.double() @ values.t()
    off = (2.0**-31 * x.double().abs().amax(1, keepdim=True)).clamp(min=2.0**-127)
    bound = 2 * off * values.abs().sum(1) + 2.0**-22 * (x.double().abs() @ values.abs().t())
    if not int8.AVAILABLE:
        bound += 2.0**-22 * x.double().abs().sum(1, keepdim=True) * 128 * weight.scales.double().t()
    assert ((weights.product(x, weight).double() - exact).abs() <= bound + 2.0**-149).all()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_a_row_with_a_value_that_is_not_finite_has_no_finite_result(value: float) -> None:
    weight = random_weight(9, 96, 0)
    x = torch.randn((7, 96), generator=torch.Generator().manual_seed(0))
    x[1, 70] = value
    for rows in (3, 7):
        found = weights.product(x[:rows], weight)
        assert not found[1].isfinite().any()
        assert found[::2].isfinite().all()
