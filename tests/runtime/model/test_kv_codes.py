"""Codes of keys and values in int8 and float8: their error, and what becomes of infinities, NaN and zeros."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from runtime.model.kv_codes import LARGEST, MOST_CODE, decoded, encoded, scales_of, stored_dims

FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
HEADS = st.lists(FLOATS, min_size=1, max_size=70).map(lambda values: torch.tensor(values, dtype=torch.float32))


CODES = st.sampled_from(list(MOST_CODE))


def both(head: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return the values of a head that was stored, float64, and its scale."""
    stored = encoded(head, dtype)
    assert (stored.dtype, stored.shape) == (dtype, (stored_dims(dtype, len(head)),))
    return decoded(stored, len(head)).double(), float(scales_of(stored))


@given(HEADS, CODES)
def test_a_value_is_within_half_a_step_and_has_its_sign_and_order(head: Tensor, dtype: torch.dtype) -> None:
    """Steps of float8 are an eighth of the power of two below the value, and of the least of them 2^-9 of a scale."""
    kept, scale = both(head, dtype)
    exact = head.double()
    bound = exact.abs().div(16).clamp(min=scale / 1024) if dtype == torch.float8_e4m3fn else scale / 2
    assert bool(((kept - exact).abs() <= bound * (1 + 1e-4)).all())
    assert scale <= max(float(exact.abs().max()) / MOST_CODE[dtype], 2.0**-126) * (1 + 1e-6)
    assert bool((kept * exact >= 0).all())
    order = exact.argsort()
    assert bool((kept[order].diff() >= 0).all()), "monotone"
    assert bool((kept[exact == 0] == 0).all())


@given(HEADS, HEADS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), CODES)
def test_a_head_has_the_codes_that_it_has_alone(
    one: Tensor, other: Tensor, wide: torch.dtype, dtype: torch.dtype
) -> None:
    size = min(len(one), len(other))
    heads = torch.stack([one[:size], other[:size]]).clamp(-6e4, 6e4).to(wide)
    alone = torch.stack([encoded(head, dtype).view(torch.uint8) for head in heads])
    assert torch.equal(encoded(heads, dtype).view(torch.uint8), alone)


@given(HEADS, CODES, st.sampled_from([2.0**-40, 2.0**40]))
def test_codes_do_not_depend_on_the_size_of_a_head(head: Tensor, dtype: torch.dtype, factor: float) -> None:
    """Where neither scale is the least one: 1e6 and 1e-6 are kept as 1 is."""
    head = head.remainder(1000.0).add(1.0)
    one, other = encoded(head, dtype), encoded(head * factor, dtype)
    assert torch.equal(one[: len(head)].view(torch.uint8), other[: len(head)].view(torch.uint8))
    assert torch.equal(scales_of(one) * factor, scales_of(other))


def test_whole_scales_are_exact() -> None:
    integers = torch.cat([torch.arange(-127, 128), torch.tensor([127])]).float()
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    for codes, dtype in ((integers, torch.int8), (every[~every.isnan()], torch.float8_e4m3fn)):
        kept, scale = both(codes * 0.25, dtype)
        assert (scale, torch.equal(kept, codes.double() * 0.25)) == (0.25, True)


def test_ties_go_to_the_even_code() -> None:
    kept, _ = both(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -3.5]), torch.int8)
    assert kept.tolist() == [127.0, 0.0, 2.0, 2.0, -0.0, -4.0]
    kept, _ = both(torch.tensor([448.0, 17.0, 19.0, -21.0, 2.0**-10, 3 * 2.0**-10]), torch.float8_e4m3fn)
    assert kept.tolist() == [448.0, 16.0, 20.0, -20.0, 0.0, 2.0**-8]


@pytest.mark.parametrize("dtype", MOST_CODE)
@given(HEADS, st.sampled_from([float("inf"), float("-inf")]))
def test_an_infinity_counts_as_the_largest_value(dtype: torch.dtype, head: Tensor, strange: float) -> None:
    kept, scale = both(torch.cat([head, torch.tensor([strange])]), dtype)
    assert bool(kept.isfinite().all())
    assert scale == torch.tensor(LARGEST / MOST_CODE[dtype], dtype=torch.float32)
    assert (kept[-1] > 0) == (strange > 0)


@given(HEADS, CODES)
def test_a_nan_is_not_hidden(head: Tensor, dtype: torch.dtype) -> None:
    stored = encoded(torch.cat([head, torch.tensor([float("nan")])]), dtype)
    assert bool((stored[: len(head) + 1].float() == 0).all())
    assert bool(decoded(stored, len(head) + 1).isnan().all())


@pytest.mark.parametrize("dtype", MOST_CODE)
def test_zeros_stay_zeros_and_so_does_a_row_that_nothing_was_written_to(dtype: torch.dtype) -> None:
    assert bool((both(torch.zeros(6), dtype)[0] == 0).all())
    assert bool((decoded(torch.zeros(12, dtype=torch.uint8).view(dtype), 6) == 0).all())
