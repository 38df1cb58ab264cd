"""Mixture of experts on one device's share: a slice of the channels of every expert, and the whole router.

    x [W, H] ── router ── softmax ── the e best of E experts and their weights [W, e]
    W · e copies of rows, sorted by expert ── gate, up ── down ── times weight, back in their order, summed by row

Shapes depend on W · e alone, not on which experts are chosen. Letters as in ``layers``. Temporaries are bounded by
`scratch.router` and `scratch.mlp` in plans/buffers.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.layers import Linear

GROUPED_ALIGN_BYTES = 16
"""Multiple of which the rows of its operands must be for torch's grouped product on a GPU."""


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
    group: Group

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + experts [W, H], of ``x`` [W, H]."""
        out = residual.clone() if self.group.leads else torch.zeros_like(residual)
        if self.gate_up is not None and self.down is not None:
            weights, experts = self.route(x)
            aligned = all(
                part.shape[2] * part.itemsize % GROUPED_ALIGN_BYTES == 0 for part in (self.gate_up, self.down)
            )
            run = _sorted if x.is_cpu or aligned else _one_by_one
            out.add_(run(x, self.gate_up, self.down, weights, experts))
        self.group.all_reduce(out)
        return out

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights, in float32, and numbers of the experts of each row [W, e], of ``x`` [W, H]."""
        chances = self.router(x).float().softmax(1)
        weights, experts = chances.topk(self.picked, 1)
        return (weights / weights.sum(1, keepdim=True) if self.normed else weights), experts


def _sorted(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Sum the experts by one grouped product over rows sorted by expert: only experts with rows are read."""
    rows, picked = experts.shape
    chosen, order = torch.sort(experts.flatten(), stable=True)
    ends = torch.searchsorted(chosen, torch.arange(gate_up.shape[0], device=x.device), right=True)
    results = ops.grouped(ops.gated(ops.grouped(x, order // picked, gate_up, ends)), None, down, ends)
    results.mul_(weights.flatten().index_select(0, order).unsqueeze(1))
    back = torch.empty_like(results).index_copy_(0, order, results)
    return back.view(rows, picked, -1).sum(1)


def _one_by_one(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Sum every expert over every row, where the channels are not aligned for a grouped product on a GPU."""
    dense = torch.zeros(x.shape[0], gate_up.shape[0], device=x.device).scatter_(1, experts, weights)
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        gate, up = torch.mm(x, gate_up[expert].t()).chunk(2, dim=1)
        result = torch.mm(functional.silu(gate).mul_(up), down[expert].t())
        out.add_(result.mul_(dense[:, expert : expert + 1]))
    return out
