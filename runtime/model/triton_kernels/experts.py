"""Experts around their products: the router's choice, rows sorted by expert, and the weighted sum of results.

Letters as in ``runtime.model.experts``. A pick is one of the W · e pairs of a row and an expert, row by row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two
from runtime.model.triton_kernels.limits import LAST

PICKS = 1024
"""Picks that a program of ``sort_kernel`` looks at together."""
VALUES = 1024
"""Channels of a program of ``combine_kernel``."""


@triton.jit
def _all_most(values):
    return tl.max(tl.max(values, 1), 0)


@triton.jit
def _first_of(values, number, most):
    """Return the least number of a value that is ``most``."""
    return tl.min(tl.min(tl.where(values == most, number, LAST), 1), 0)


@triton.jit
def route_kernel(
    logits, correction, weights, experts, stride, per_group, groups, scale, least, added,
    PICKED: tl.constexpr, PICKED_GROUPS: tl.constexpr, SIGMOID: tl.constexpr, CORRECTS: tl.constexpr,
    NORMED: tl.constexpr, PICKS_GROUPS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Pick the experts of one row, of equal ones the first, and weigh them."""
    row = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (group < groups) & (member < per_group)
    number = group * per_group + member
    value = tl.load(logits + row * stride + number, mask=inside, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        scores = tl.sigmoid(value)
    else:
        exponentials = tl.exp(value - _all_most(value))
        scores = exponentials / tl.sum(tl.sum(exponentials, 1), 0)
    choices = scores
    if CORRECTS:
        choices = scores + tl.load(correction + number, mask=inside, other=0.0)
    choices = tl.where(inside, choices, float("-inf"))
    number = tl.where(inside, number, LAST)
    if PICKS_GROUPS:
        best = tl.max(choices, 1)[:, None]
        first = tl.min(tl.where(choices == best, number, LAST), 1)[:, None]
        totals = tl.where(group < groups, best + tl.max(tl.where(number == first, float("-inf"), choices), 1)[:, None],
                          float("-inf"))  # fmt: skip
        picked = group < 0
        for _ in range(PICKED_GROUPS):
            chosen = _first_of(totals, group, _all_most(totals))
            picked = picked | (group == chosen)
            totals = tl.where(group == chosen, float("-inf"), totals)
        choices = tl.where(picked, choices, float("-inf"))
        number = tl.where(picked, number, LAST)
    place = tl.arange(0, WIDTH)
    own_weights, own_experts = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.int32)
    for at in range(PICKED):
        chosen = _first_of(choices, number, _all_most(choices))
        weight = tl.sum(tl.sum(tl.where(number == chosen, scores, 0.0), 1), 0)
        own_weights = tl.where(place == at, weight, own_weights)
        # what is not a number is above nothing: then it is the last expert
        own_experts = tl.where(place == at, tl.minimum(chosen, groups * per_group - 1), own_experts)
        choices = tl.where(number == chosen, float("-inf"), choices)
        number = tl.where(number == chosen, LAST, number)
    if NORMED:
        own_weights = own_weights / tl.maximum(tl.sum(own_weights, 0) + added, least)
    tl.store(weights + row * PICKED + place, own_weights * scale, mask=place < PICKED)
    tl.store(experts + row * PICKED + place, own_experts.to(tl.int64), mask=place < PICKED)


def route(
    logits: Tensor, picked: int, *, sigmoid: bool, correction: Tensor | None, groups: int, picked_groups: int,
    normed: bool, scale: float, least: float, added: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return weights, float32, and numbers, int64, of the experts of each row [W, e], of ``logits`` [W, E].

    ``normed``: weights are divided by their sum + ``added``, at least ``least``; others as in ``router.Router``.
    """
    rows, experts = logits.shape
    assert experts % groups == 0
    assert picked <= experts // groups * picked_groups
    assert logits.stride(1) == 1
    assert correction is None or (correction.shape == (experts,) and correction.is_contiguous())
    weights = torch.empty(rows, picked, dtype=torch.float32, device=logits.device)
    numbers = torch.empty(rows, picked, dtype=torch.int64, device=logits.device)
    launch.start(
        route_kernel, (rows,), logits, correction, weights, numbers, logits.stride(0), experts // groups, groups, scale,
        least, added, PICKED=picked, PICKED_GROUPS=picked_groups, SIGMOID=sigmoid, CORRECTS=correction is not None,
        NORMED=normed, PICKS_GROUPS=groups > 1, GROUPS=power_of_two(groups), SIZE=power_of_two(experts // groups),
        WIDTH=power_of_two(picked), warps=1,
    )  # fmt: skip
    return weights, numbers


@triton.jit
def sort_kernel(picks, order, ends, count, BLOCK: tl.constexpr):
    """Find the picks of one expert, in their order, behind those of all experts before it."""
    expert, at = tl.program_id(0), tl.arange(0, BLOCK)
    start, own = 0, 0
    for first in range(0, count, BLOCK):
        value = tl.load(picks + first + at, mask=first + at < count, other=LAST)
        start += tl.sum((value < expert).to(tl.int32), 0)
        own += tl.sum((value == expert).to(tl.int32), 0)
    tl.store(ends + expert, start + own)
    for first in range(0, count, BLOCK):
        value = tl.load(picks + first + at, mask=first + at < count, other=LAST)
        same = (value == expert).to(tl.int32)
        tl.store(order + start + tl.cumsum(same, 0) - 1, first + at, mask=same == 1)
        start += tl.sum(same, 0)


def by_expert(picks: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of picks sorted by expert, a stable order [W · e], and where each expert's end [E], int64.

    ``picks`` [W, e]: the expert of each.
    """
    count = picks.numel()
    assert picks.is_contiguous()
    order, ends = picks.new_empty(count), picks.new_empty(experts)
    launch.start(
        sort_kernel, (experts,), picks, order, ends, count, BLOCK=max(32, min(PICKS, power_of_two(count))),
        warps=4 if count > 128 else 1,
    )  # fmt: skip
    return order, ends


@triton.jit
def combine_kernel(
    results, weights, residual, shared, gates, out, columns, residual_stride,
    PICKED: tl.constexpr, ADDS: tl.constexpr, SHARES: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up some channels of a row: its experts' results by their weights, the shared expert's, and the residual."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], tl.float32)
    for pick in range(PICKED):
        weight = tl.load(weights + row * PICKED + pick)
        own = tl.load(results + (row * PICKED + pick) * columns + column, mask=inside, other=0.0)
        total += weight * own.to(tl.float32)
    if SHARES:
        own = tl.load(shared + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            own *= tl.sigmoid(tl.load(gates + row).to(tl.float32))
        total += own
    if ADDS:
        total += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, total.to(out.dtype.element_ty), mask=inside)


def weighted_sum(
    results: Tensor, weights: Tensor, residual: Tensor | None, shared: Tensor | None, gates: Tensor | None
) -> Tensor:
    """Return the sum of ``results`` [W · e, H] by ``weights`` [W, e], ``shared`` and ``residual`` [W, H]: [W, H].

    ``shared`` is multiplied by the sigmoid of ``gates`` [W, 1]. The sum is in float32.
    """
    (rows, picked), columns = weights.shape, results.shape[1]
    assert results.shape[0] == rows * picked
    assert results.is_contiguous()
    assert weights.is_contiguous()
    assert residual is None or (residual.shape == (rows, columns) and residual.stride(1) == 1)
    assert shared is None or (shared.shape == (rows, columns) and shared.is_contiguous())
    assert gates is None or gates.shape == (rows, 1)
    out = results.new_empty(rows, columns)
    block = min(VALUES, power_of_two(columns))
    launch.start(
        combine_kernel, (rows, ceil_div(columns, block)), results, weights, residual, shared, gates, out, columns,
        0 if residual is None else residual.stride(0), PICKED=picked, ADDS=residual is not None,
        SHARES=shared is not None, GATED=gates is not None, BLOCK=block,
    )  # fmt: skip
    return out
