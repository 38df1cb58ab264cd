"""Codes of keys and values in int8: their error, and what becomes of infinities, NaN and zeros."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from plans.dtypes import cached_width
from runtime.model.kv_codes import LARGEST, decoded, encoded, scales_of

FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
HEADS = st.lists(FLOATS, min_size=1, max_size=70).map(lambda values: torch.tensor(values, dtype=torch.float32))


def both(head: Tensor) -> tuple[Tensor, float]:
    """Return the values of a head that was stored, float64, and its scale."""
    stored = encoded(head)
    assert stored.shape == (cached_width("int8", len(head)),)
    return decoded(stored, len(head)).double(), float(scales_of(stored))


@given(HEADS)
def test_a_value_is_within_half_a_scale_and_has_its_sign_and_order(head: Tensor) -> None:
    kept, scale = both(head)
    exact = head.double()
    assert float((kept - exact).abs().max()) <= scale / 2 * (1 + 1e-4)
    assert scale <= max(float(exact.abs().max()) / 127, 2.0**-126) * (1 + 1e-6)
    assert bool((kept * exact >= 0).all())
    order = exact.argsort()
    assert bool((kept[order].diff() >= 0).all()), "monotone"
    assert bool((kept[exact == 0] == 0).all())


@given(HEADS, HEADS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_head_has_the_codes_that_it_has_alone_and_whole_scales_are_exact(
    one: Tensor, other: Tensor, dtype: torch.dtype
) -> None:
    size = min(len(one), len(other))
    heads = torch.stack([one[:size], other[:size]]).clamp(-6e4, 6e4).to(dtype)
    assert torch.equal(encoded(heads), torch.stack([encoded(head) for head in heads]))
    codes = torch.cat([torch.arange(-127, 128), torch.tensor([127])]).float()
    kept, scale = both(codes * 0.25)
    assert (scale, torch.equal(kept, codes.double() * 0.25)) == (0.25, True)


def test_ties_go_to_the_even_code() -> None:
    kept, _ = both(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -3.5]))
    assert kept.tolist() == [127.0, 0.0, 2.0, 2.0, -0.0, -4.0]


@given(HEADS, st.sampled_from([float("inf"), float("-inf")]))
def test_an_infinity_counts_as_the_largest_value(head: Tensor, strange: float) -> None:
    kept, scale = both(torch.cat([head, torch.tensor([strange])]))
    assert bool(kept.isfinite().all())
    assert scale == torch.tensor(LARGEST / 127, dtype=torch.float32)
    assert (kept[-1] > 0) == (strange > 0)


@given(HEADS)
def test_a_nan_is_not_hidden(head: Tensor) -> None:
    stored = encoded(torch.cat([head, torch.tensor([float("nan")])]))
    assert bool((stored[: len(head) + 1] == 0).all())
    assert bool(decoded(stored, len(head) + 1).isnan().all())


def test_zeros_stay_zeros_and_so_does_a_row_that_nothing_was_written_to() -> None:
    assert bool((both(torch.zeros(6))[0] == 0).all())
    assert bool((decoded(torch.zeros(12, dtype=torch.int8), 6) == 0).all())
