"""Mixture of experts on one device's share: a slice of the channels of every expert, and the whole router.

    x [W, H] ── router ── softmax ── the e best of E experts and their weights [W, e]
    grouped: W · e copies of rows, sorted by expert ── gate, up ── down ── times weight, in their order, summed by row
    else: all E experts on every row ── gate, up ── down ── times weight, 0 for those not chosen, summed by row

The plan's device decides which (``plans.step.ungrouped_rows``). Shapes depend on W · e or W · E alone, not on which
experts are chosen, and the host waits for nothing. Letters as in ``layers``. Temporaries are bounded by
`scratch.router` and `scratch.mlp` in plans/buffers.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.layers import GatedMlp, Linear, own_part


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """The sum of e experts, each down(silu(gate(x)) * up(x)), by the router's weights."""

    router: Linear
    gate_up: Tensor | None
    """[E, 2m, H]; None: this device has no channels and only takes part in the sum."""
    down: Tensor | None
    """[E, H, m]"""
    picked: int
    """e, experts of each row."""
    normed: bool
    """True: the weights of a row's experts are divided by their sum."""
    ungrouped_rows: int | None
    """Rows on which all experts are run at once; None: rows are grouped by expert."""
    group: Group
    shared: GatedMlp | None = None
    """This device's channels of the expert that every row takes."""
    shared_gate: Linear | None = None
    """Its output is multiplied by the sigmoid of this product [W, 1]."""

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return residual + experts [W, H], of ``x`` [W, H]; ``residual`` None: 0."""
        out = own_part(residual, x, self.group)
        if self.gate_up is not None and self.down is not None:
            weights, experts = self.route(x)
            if self.ungrouped_rows is None:
                out.add_(_sorted(x, self.gate_up, self.down, weights, experts))
            else:
                for part, *chunk in zip(
                    *(rows.split(self.ungrouped_rows) for rows in (out, x, weights, experts)), strict=True
                ):
                    part.add_(_all(chunk[0], self.gate_up, self.down, *chunk[1:]))
        if self.shared is not None:
            out.add_(self._shared(self.shared, x))
        self.group.all_reduce(out)
        return out

    def _shared(self, expert: GatedMlp, x: Tensor) -> Tensor:
        """Return this device's part of the shared expert [W, H], of ``x`` [W, H]."""
        out = expert.own(x)
        return out if self.shared_gate is None else out.mul_(sigmoid(self.shared_gate(x).float()))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights, in float32, and numbers of the experts of each row [W, e], of ``x`` [W, H]."""
        chances = self.router(x).float().softmax(1)
        weights, experts = chances.topk(self.picked, 1)
        return (weights / weights.sum(1, keepdim=True) if self.normed else weights), experts


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid of each value in float32, with bits that do not depend on where in ``x`` it is.

    It is a weight of the softmax of x and 0: torch's sigmoid has other code for the last values of a tensor.
    """
    return torch.stack([x, torch.zeros_like(x)], -1).softmax(-1)[..., 0]


def _sorted(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Sum the experts by one grouped product over rows sorted by expert: only experts with rows are read."""
    rows, picked = experts.shape
    chosen, order = torch.sort(experts.flatten(), stable=True)
    ends = torch.searchsorted(chosen, torch.arange(gate_up.shape[0], device=x.device), right=True)
    results = ops.grouped(ops.gated(ops.grouped(x, order // picked, gate_up, ends)), None, down, ends)
    results.mul_(weights.flatten().index_select(0, order).unsqueeze(1))
    back = torch.empty_like(results).index_copy_(0, order, results)
    return back.view(rows, picked, -1).sum(1)


def _all(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Run every expert on every row, and sum those that were chosen; the others are zeros, also where they overflow."""
    (rows, _), (number, channels, _) = x.shape, gate_up.shape
    chosen = x.new_zeros((rows, number), dtype=torch.float32).scatter_(1, experts, weights)  # [W, E]
    inner = ops.gated(ops.product(x, gate_up.flatten(0, 1).t()).view(rows * number, channels))  # [W * E, m]
    inner = inner.view(rows, number, -1).masked_fill_((chosen == 0.0).unsqueeze(2), 0.0)
    results = torch.bmm(inner.transpose(0, 1), down.transpose(1, 2))  # [E, W, H]
    return results.mul_(chosen.t().unsqueeze(2)).sum(0)
