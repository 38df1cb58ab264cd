"""Sorting of picks by expert and sums of experts' results, by Triton's interpreter, against torch.

Routers and whole experts: tests/runtime/model/test_experts.py.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.model.triton_kernels import experts
from tests.runtime.model.triton_kernels.interpreted import near, seeded

EXAMPLES = settings(max_examples=12, deadline=None)


@EXAMPLES
@given(
    rows=st.sampled_from([1, 5, 600]), picked=st.integers(1, 4), number=st.sampled_from([1, 3, 8, 33]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_picks_are_sorted_by_expert_in_their_order(rows: int, picked: int, number: int, seed: int) -> None:
    """Also of more picks than a program looks at together; some experts have none."""
    picks = torch.randint(number, (rows, picked), generator=torch.Generator().manual_seed(seed))
    order, ends = experts.by_expert(picks, number)
    chosen, expected = torch.sort(picks.flatten(), stable=True)
    assert torch.equal(order, expected)
    assert torch.equal(ends, torch.searchsorted(chosen, torch.arange(number), right=True))


@EXAMPLES
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), rows=st.integers(1, 3),
    picked=st.integers(1, 3), columns=st.sampled_from([1, 40, 1100]), adds=st.booleans(),
    shared=st.sampled_from([None, "whole", "gated"]),
)  # fmt: skip
def test_results_are_added_up_by_weight_with_one_rounding(
    dtype: torch.dtype, rows: int, picked: int, columns: int, adds: bool, shared: str | None
) -> None:
    results, weights = seeded(rows * picked, columns, dtype=dtype), seeded(rows, picked).abs()
    residual = seeded(rows, columns + 2, dtype=dtype, seed=1)[:, :columns] if adds else None
    more = None if shared is None else seeded(rows, columns, dtype=dtype, seed=2)
    gates = seeded(rows, 1, dtype=dtype, seed=3) if shared == "gated" else None
    out = experts.weighted_sum(results, weights, residual, more, gates)
    expected = (results.double().view(rows, picked, columns) * weights.double().unsqueeze(2)).sum(1)
    if more is not None:
        expected += more.double() * (1.0 if gates is None else gates.double().sigmoid())
    expected += 0.0 if residual is None else residual.double()
    assert near(out, expected, roundings=2)  # the interpreter cuts off the bits of a bfloat16


def test_what_is_not_a_number_picks_an_expert() -> None:
    logits = torch.full((1, 6), float("nan"))
    _, picks = experts.route(
        logits, 2, sigmoid=False, correction=None, groups=1, picked_groups=1, normed=True, scale=1.0, least=0.0,
        added=0.0,
    )  # fmt: skip
    assert bool(((picks >= 0) & (picks < 6)).all())
