"""Attention where several devices, a subgroup, divide the KV cache of the same KV heads among them.

The axis of the division: ``heads`` (not here: each device has whole KV heads and attends alone), ``batch`` (each member
has some of the sequences), ``context`` (every parts-th position), ``head_dim`` (some dims of every head). By
``context`` and ``head_dim`` members exchange partial results. Both go through the cache SCORE_COLUMNS rows at a time,
in float32, with a running maximum M and sum S:

    scores = scale * q · k + bias              head_dim: q · k summed over the subgroup first
    M' = max(M, max of scores)                 S' = S exp(M - M') + sum of exp(scores - M')
    out' = out exp(M - M') + exp(scores - M') · v

By context each member computes out / S over its positions and the logarithm of their weight, M + log S. All gather
these; the result is their average by weight, of which a member keeps the columns that its o has.

Letters as in ``layers``; P members of the subgroup. Temporaries are bounded by `scratch.scores`, `scratch.columns` and
`scratch.merged` in plans/buffers.py; `scores` and `partial` are buffers, as they are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from plans.kv import KvShare, part_range
from plans.schema import Attention
from plans.step import partial_shape, score_blocks
from runtime.comm.groups import Group
from runtime.image.buffers import Memory
from runtime.model.kvcache import KvCache
from runtime.model.layers import Attend, attend


def attend_of(share: KvShare, attention: Attention, subgroup: Group | None, memory: Memory, prefix: str) -> Attend:
    """Return the attention of a device's share: alone, or with its subgroup by ``context`` or ``head_dim``.

    ``prefix``: of the buffers' names.
    """
    if subgroup is None:
        return attend
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    scores = memory.buffer(f"{prefix}scores").flatten()
    if share.axis == "head_dim":
        return ByHeadDim(group=subgroup, scale=scale, scores=scores)
    partial = memory.buffer(f"{prefix}partial").flatten()
    return ByContext(group=subgroup, share=share, scale=scale, scores=scores, partial=partial)


def cache_of(runs: Sequence[Tensor], tree_rows: int, batch: int, share: KvShare, *, wraps: bool = False) -> KvCache:
    """Return the KV cache of a device's share over its buffers; ``batch``: sequences on all members.

    ``wraps``: it is a ring, of layers with a window.
    """
    by_context = share.axis == "context"
    return KvCache(
        runs,
        tree_rows,
        sequences=own_sequences(batch, share),
        part=share.part if by_context else 0,
        parts=share.parts if by_context else 1,
        wraps=wraps,
    )


def own_sequences(batch: int, share: KvShare) -> range:
    """Return the sequences of a member: some of them where the subgroup divides by ``batch``, otherwise all."""
    if share.axis != "batch":
        return range(batch)
    return range(*part_range(batch, share))


def shared(sequences: range, own: range) -> tuple[slice, slice]:
    """Return which of the ``sequences`` of a forward are a device's ``own``: in the forward, and in its cache."""
    start = max(sequences.start, own.start)
    stop = max(start, min(sequences.stop, own.stop))
    return slice(start - sequences.start, stop - sequences.start), slice(start - own.start, stop - own.start)


def own_frequencies(frequencies: Tensor, share: KvShare) -> Tensor:
    """Return the part of a rotary table [D/2], or [2, D/2], with a device's rotary pairs of a head."""
    if share.axis != "head_dim":
        return frequencies
    return frequencies[..., slice(*part_range(frequencies.shape[-1], share))]


@dataclass(frozen=True, kw_only=True, slots=True)
class ByHeadDim:
    """Attention where each member has some dims of every head, and every position."""

    group: Group
    scale: float
    """Factor of scores."""
    scores: Tensor
    """Buffer in which scores are summed over the subgroup: float32, flat."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend; the result has the member's dims of every head."""
        out, _ = streamed(q, k, v, bias, self.scale, self.scores, self.group)
        return _rows(out).to(q.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByContext:
    """Attention where each member has some positions of every head, and keeps some columns of the result."""

    group: Group
    share: KvShare
    scale: float
    scores: Tensor
    """Buffer in which scores are computed: float32, flat."""
    partial: Tensor
    """Buffer, float32, flat: [1 + P, W, h, D + 1], this member's partial result and that of every member."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend; the result has the member's columns of o."""
        out, weight = streamed(q, k, v, bias, self.scale, self.scores, None)
        sequences, heads, n, dims = out.shape
        members, width = len(self.group.ranks), heads * dims
        sent = partial_shape(sequences * n, heads, dims)
        partial = self.partial[: (1 + members) * prod(sent)].view(1 + members, sequences, n, *sent[1:])
        partial[0, ..., :dims].copy_(out.transpose(1, 2))
        partial[0, ..., dims].copy_(weight.transpose(1, 2))
        gathered = self.group.all_gather(partial[0], partial[1:])  # [P, B, n, h, D + 1]
        weights = (gathered[..., dims:] - gathered[..., dims:].amax(0)).exp_()  # [P, B, n, h, 1]
        merged = gathered[..., :dims].mul_(weights).sum(0).div_(weights.sum(0))
        columns = slice(*part_range(width, self.share))
        return merged.view(sequences * n, width)[:, columns].to(q.dtype)


def streamed(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, scores: Tensor, group: Group | None
) -> tuple[Tensor, Tensor]:
    """Attend to a part of the cache; return out [B, h, n, D] and the logarithm of the sum of exp(score) [B, h, n].

    ``q``, ``k``, ``v``, ``bias`` as in ``Attend``. A row that sees nothing has zeros and -inf. Scores are summed over
    ``group`` unless it is None.
    """
    sequences, heads, n, dims = q.shape
    kv_heads, width = k.shape[1], k.shape[2]
    rows = q.float().mul_(scale).reshape(sequences, kv_heads, heads // kv_heads * n, dims)
    out = torch.zeros_like(rows)
    high = torch.full((sequences, heads, n), float("-inf"), dtype=torch.float32, device=q.device)
    total = torch.zeros_like(high)
    for block in score_blocks(width):
        columns = block.stop - block.start
        by_kv_head = scores[: sequences * heads * n * columns].view(sequences, kv_heads, -1, columns)
        torch.matmul(rows, k[:, :, block].float().transpose(2, 3), out=by_kv_head)
        if group is not None:
            group.all_reduce(by_kv_head)
        seen = by_kv_head.view(sequences, heads, n, columns).add_(bias[..., block])
        higher = torch.maximum(high, seen.amax(-1))
        base = higher.clamp(min=torch.finfo(torch.float32).min)  # a row that sees nothing is not inf - inf
        weights = seen.sub_(base.unsqueeze(-1)).exp_()
        kept = (high - base).exp_()
        total = total.mul_(kept).add_(weights.sum(-1))
        out.mul_(kept.view(sequences, kv_heads, -1, 1)).add_(torch.matmul(by_kv_head, v[:, :, block].float()))
        high = higher
    out = out.view(sequences, heads, n, dims).div_(total.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1))
    return out, high.add_(total.log_())


def _rows(out: Tensor) -> Tensor:
    """Reorder [B, h, n, D] to [W, h * D]."""
    sequences, heads, n, dims = out.shape
    return out.transpose(1, 2).reshape(sequences * n, heads * dims)
