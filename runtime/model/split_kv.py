"""Attention whose KV cache a subgroup of devices divides: what a member has of it, and how it attends with the others.

By positions (``context``) and by dims of heads (``head_dim``) members exchange what they come to. Both go through the
cache a block of SCORE_COLUMNS rows at a time, in float32, with a running maximum M and sum S:

    scores = q · k / sqrt(D) + bias            head_dim: q · k summed over the subgroup first
    M' = max(M, max of scores)                 S' = S exp(M - M') + sum of exp(scores - M')
    out' = out exp(M - M') + exp(scores - M') · v

By context each member comes to an out / S of its rows with the logarithm of their weight, M + log S. All gather these,
and the whole is their average by weight, of which a member goes on with the columns that its o has.

Letters as in ``layers``; P members of the subgroup.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.buffers import SCORE_COLUMNS
from plans.kv import KvShare
from runtime.comm.groups import Group
from runtime.image.buffers import Memory
from runtime.model.kvcache import KvCache
from runtime.model.layers import Attend, attend


def attend_of(share: KvShare, head_dim: int, subgroup: Group | None, memory: Memory, prefix: str) -> Attend:
    """How a device attends: with its subgroup, where that divides heads or positions; else it has no ``subgroup``.

    ``head_dim``: of a whole head. ``prefix``: of the names of its buffers.
    """
    if subgroup is None:
        return attend
    scale = head_dim**-0.5
    scores = memory.buffer(f"{prefix}scores").flatten()
    if share.axis == "head_dim":
        return ByHeadDim(group=subgroup, scale=scale, scores=scores)
    return ByContext(group=subgroup, scale=scale, scores=scores, partial=memory.buffer(f"{prefix}partial").flatten())


def cache_of(runs: Sequence[Tensor], tree_rows: int, batch: int, share: KvShare) -> KvCache:
    """The cache of a device's share, of ``batch`` sequences in all, over its buffers."""
    by_context = share.axis == "context"
    return KvCache(
        runs,
        tree_rows,
        sequences=own_sequences(batch, share),
        part=share.part if by_context else 0,
        parts=share.parts if by_context else 1,
    )


def own_sequences(batch: int, share: KvShare) -> range:
    """Those of a member of a subgroup by ``batch``, otherwise all."""
    if share.axis != "batch":
        return range(batch)
    return range(share.part * batch // share.parts, (share.part + 1) * batch // share.parts)


def own_frequencies(every: Tensor, share: KvShare) -> Tensor:
    """Of the rotary pairs that a device has of every head, of those of all [D/2]."""
    if share.axis != "head_dim":
        return every
    pairs = every.shape[0]
    return every[share.part * pairs // share.parts : (share.part + 1) * pairs // share.parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class ByHeadDim:
    """Each member has some dims of every head, and every position."""

    group: Group
    scale: float
    """1 / sqrt of the whole head's dims."""
    scores: Tensor
    """Where scores are summed: float32, flat."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """``Attend``, with the member's dims of every head."""
        out, _ = streamed(q, k, v, bias, self.scale, self.scores, self.group)
        return _rows(out).to(q.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByContext:
    """Each member has some positions of every head, and goes on with some columns of the result."""

    group: Group
    scale: float
    scores: Tensor
    """Where scores are computed: float32, flat."""
    partial: Tensor
    """float32, flat: [1 + P, W, h, D + 1], what this member brings and what all bring."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """``Attend``, with the member's columns."""
        out, weight = streamed(q, k, v, bias, self.scale, self.scores, None)
        sequences, heads, n, dims = out.shape
        members, width = len(self.group.ranks), heads * dims
        shape = (1 + members, sequences, n, heads, dims + 1)
        partial = self.partial[: out.numel() // dims * (dims + 1) * (1 + members)].view(shape)
        partial[0, ..., :dims].copy_(out.transpose(1, 2))
        partial[0, ..., dims].copy_(weight.transpose(1, 2))
        every = self.group.all_gather(partial[0], partial[1:])
        weights = (every[..., dims:] - every[..., dims:].amax(0)).exp_()  # [P, B, n, h, 1]
        merged = every[..., :dims].mul_(weights).sum(0).div_(weights.sum(0))
        start, stop = (part * width // members for part in (self.group.index, self.group.index + 1))
        return merged.view(sequences * n, width)[:, start:stop].to(q.dtype)


def streamed(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, scores: Tensor, group: Group | None
) -> tuple[Tensor, Tensor]:
    """``Attend``'s arguments -> out [B, h, n, D] and the logarithm of the weight of what each row saw [B, h, n].

    A row that sees nothing has zeros, and -inf. The scores are summed over ``group`` where there is one.
    """
    sequences, heads, n, dims = q.shape
    kv_heads, width = k.shape[1], k.shape[2]
    rows = q.float().mul_(scale).reshape(sequences, kv_heads, heads // kv_heads * n, dims)
    out = torch.zeros_like(rows)
    high = torch.full((sequences, heads, n), float("-inf"), dtype=torch.float32, device=q.device)
    total = torch.zeros_like(high)
    for start in range(0, width, SCORE_COLUMNS):
        block = slice(start, min(start + SCORE_COLUMNS, width))
        columns = block.stop - start
        found = scores[: sequences * heads * n * columns].view(sequences, kv_heads, -1, columns)
        torch.matmul(rows, k[:, :, block].float().transpose(2, 3), out=found)
        if group is not None:
            group.all_reduce(found)
        seen = found.view(sequences, heads, n, columns).add_(bias[..., block])
        higher = torch.maximum(high, seen.amax(-1))
        base = higher.clamp(min=torch.finfo(torch.float32).min)  # so that what sees nothing is not inf - inf
        chances = seen.sub_(base.unsqueeze(-1)).exp_()
        kept = (high - base).exp_()
        total = total.mul_(kept).add_(chances.sum(-1))
        out.mul_(kept.view(sequences, kv_heads, -1, 1)).add_(torch.matmul(found, v[:, :, block].float()))
        high = higher
    out = out.view(sequences, heads, n, dims).div_(total.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1))
    return out, high.add_(total.log_())


def _rows(out: Tensor) -> Tensor:
    """[B, h, n, D] -> [W, h * D]"""
    sequences, heads, n, dims = out.shape
    return out.transpose(1, 2).reshape(sequences * n, heads * dims)
