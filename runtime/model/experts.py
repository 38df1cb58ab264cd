"""Mixture of experts on one device's share: a slice of the channels of every expert, and the whole router.

    x [W, H] ── router ── e of E experts and their weights [W, e]
    W · e picks, sorted by expert ── gate, up ── down ── times weight, in their order, summed by row

Shapes depend on W · e alone, not on which experts are chosen, and only experts with rows are read. On a GPU, where the
host waits for nothing, these are the kernels of ``triton_kernels``, 6 for plain experts with the router's. Letters as
in ``layers``. Temporaries are bounded by `scratch.mlp` in plans/layer_buffers.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.comm.groups import Group
from runtime.model import ops
from runtime.model.layers import GatedMlp, Linear, own_part
from runtime.model.router import Router, sigmoid
from runtime.model.weights import Coded, grouped


@dataclass(frozen=True, kw_only=True, slots=True)
class Clamp:
    """A gated MLP with bounds (gpt-oss): (up + 1) * gate * sigmoid(alpha * gate), of clamped gates and ups."""

    limit: float
    """Gates are at most this, ups between its negative and it."""
    alpha: float

    def __call__(self, both: Tensor) -> Tensor:
        """Return the result [W, m] of gates and ups [W, 2m], which may be overwritten, on a CPU."""
        gate, up = both.chunk(2, dim=1)
        gate.clamp_(max=self.limit).mul_(self.alpha)
        up.clamp_(-self.limit, self.limit).add_(1.0).div_(self.alpha)
        return ops.gated(both)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """The sum of e experts, each down(silu(gate(x)) * up(x)), by the router's weights."""

    router: Router
    gate_up: Tensor | Coded | None
    """[E, 2m, H]; None: this device has no channels and only takes part in the sum."""
    down: Tensor | Coded | None
    """[E, H, m]"""
    group: Group
    gate_up_bias: Tensor | None = None
    """[E, 2m]"""
    down_bias: Tensor | None = None
    """[E, H], on the leader alone."""
    clamp: Clamp | None = None
    """Bounds of gates and ups; None: none."""
    shared: GatedMlp | None = None
    """This device's channels of the expert that every row takes."""
    shared_gate: Linear | None = None
    """Its output is multiplied by the sigmoid of this product [W, 1]."""

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return residual + experts [W, H], of ``x`` [W, H]; ``residual`` None: 0."""
        has_channels = self.gate_up is not None and self.down is not None
        out = self._on_gpu(x, residual) if has_channels and not ops.is_cpu(x) else self._own(x, residual)
        self.group.all_reduce(out)
        return out

    def _own(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return what this device brings to the sum; on a GPU where it has none of the experts' channels."""
        out = own_part(residual, x, self.group)
        if self.gate_up is not None and self.down is not None:
            weights, experts = self.router(x)
            out.add_(self._sorted(x, self.gate_up, self.down, weights, experts))
        elif self.down_bias is not None:
            weights, experts = self.router(x)
            biases = self.down_bias.index_select(0, experts.flatten()).mul_(weights.flatten().unsqueeze(1))
            out.add_(biases.view(*experts.shape, -1).sum(1))
        if self.shared is not None:
            out.add_(self._shared(self.shared, x))
        return out

    def _on_gpu(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return what this device brings to the sum, by kernels that read on the device which rows an expert has."""
        assert self.gate_up is not None
        assert self.down is not None
        kernels, products = ops.on_gpu("experts"), ops.on_gpu("products")
        weights, experts = self.router(x)
        order, ends = kernels.by_expert(experts, self.gate_up.shape[0])
        clamp = None if self.clamp is None else (self.clamp.limit, self.clamp.alpha)
        gated = products.grouped(
            x, self.gate_up, order, ends, picked=experts.shape[1], bias=self.gate_up_bias,
            gate=products.Gate(clamp=clamp),
        )  # fmt: skip
        results = products.grouped(gated, self.down, order, ends, picked=None, bias=self.down_bias)
        shared = None if self.shared is None else self.shared.own(x)
        gates = None if shared is None or self.shared_gate is None else self.shared_gate(x)
        out: Tensor = kernels.weighted_sum(results, weights, residual if self.group.leads else None, shared, gates)
        return out

    def _shared(self, expert: GatedMlp, x: Tensor) -> Tensor:
        """Return this device's part of the shared expert [W, H], of ``x`` [W, H]."""
        out = expert.own(x)
        return out if self.shared_gate is None else out.mul_(sigmoid(self.shared_gate(x).float()))

    def _sorted(
        self, x: Tensor, gate_up: Tensor | Coded, down: Tensor | Coded, weights: Tensor, experts: Tensor
    ) -> Tensor:
        """Sum the experts by one grouped product over rows sorted by expert: only experts with rows are read."""
        rows, picked = experts.shape
        chosen, order = torch.sort(experts.flatten(), stable=True)
        ends = torch.searchsorted(chosen, torch.arange(gate_up.shape[0], device=x.device), right=True)
        both = grouped(x, order // picked, gate_up, ends)
        if self.gate_up_bias is not None:
            both.add_(self.gate_up_bias.index_select(0, chosen))
        results = grouped(self._gated(both), None, down, ends)
        if self.down_bias is not None:
            results.add_(self.down_bias.index_select(0, chosen))
        results.mul_(weights.flatten().index_select(0, order).unsqueeze(1))
        back = torch.empty_like(results).index_copy_(0, order, results)
        return back.view(rows, picked, -1).sum(1)

    def _gated(self, both: Tensor) -> Tensor:
        """Return act(gate) * up [R, m], of ``both`` [R, 2m], which may be overwritten."""
        return ops.gated(both) if self.clamp is None else self.clamp(both)
