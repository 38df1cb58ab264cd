"""Attention where several devices, a subgroup, divide the KV cache of the same KV heads among them.

The axis of the division: ``heads`` (not here: each device has whole KV heads and attends alone), ``batch`` (each member
has some of the sequences), ``context`` (every parts-th position), ``head_dim`` (some dims of every head). By
``context`` and ``head_dim`` members exchange partial results, block by block of the cache (``scores.streamed``).

By context each member computes out / S over its positions and the logarithm of their weight, M + log S. All gather
these; the result is their average by weight, of which a member keeps the columns that its o has.

Letters as in ``layers``; P members of the subgroup. Temporaries are bounded by `scratch.scores`, `scratch.columns` and
`scratch.merged` in plans/layer_buffers.py; `scores` and `partial` are buffers, as they are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from plans.kv import KvShare, part_range
from plans.step import partial_shape
from runtime.comm.groups import Group
from runtime.image.buffers import Memory
from runtime.model import ops
from runtime.model.kvcache import KvCache
from runtime.model.layers import WHOLE, Attend
from runtime.model.mask import Mask
from runtime.model.scores import Scores, streamed


def attend_of(share: KvShare, subgroup: Group | None, memory: Memory, prefix: str) -> Attend:
    """Return the attention of a device's share: alone, or with its subgroup by ``context`` or ``head_dim``.

    ``prefix``: of the buffers' names.
    """
    if subgroup is None:
        return WHOLE
    if share.axis == "head_dim":
        return Attend(
            by_bias=ByHeadDim(group=subgroup, buffer=memory.buffer(f"{prefix}scores").flatten()), by_mask=None
        )
    partial = memory.buffer(f"{prefix}partial").flatten()
    scores = memory.buffer(f"{prefix}scores").flatten() if ops.is_cpu(partial) else None
    by_context = ByContext(group=subgroup, share=share, buffer=scores, partial=partial)
    return Attend(by_bias=by_context, by_mask=by_context.by_mask)


def reads_bias(share: KvShare, cache: Tensor) -> bool:
    """Return True where attention reads a bias: on a CPU, and where devices add up their scores."""
    return ops.is_cpu(cache) or share.axis == "head_dim"


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
    buffer: Tensor
    """Scores are summed over the subgroup in it: float32, flat."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores) -> Tensor:
        """Attend; the result has the member's dims of every head."""
        out, weight = streamed(q, k, v, bias, scores, self.buffer, self.group)
        if scores.sinks is not None:
            out.mul_(scores.beside_sinks(weight).unsqueeze(-1))
        return _rows(out).to(q.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByContext:
    """Attention where each member has some positions of every head, and keeps some columns of the result."""

    group: Group
    share: KvShare
    buffer: Tensor | None
    """Scores are computed in it: float32, flat; None: on a GPU, whose scores are in registers."""
    partial: Tensor
    """Buffer, float32, flat: [1 + P, W, h, D + 1], this member's partial result and that of every member."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores) -> Tensor:
        """Attend; the result has the member's columns of o."""
        assert self.buffer is not None
        out, weight = streamed(q, k, v, bias, scores, self.buffer, None)
        sequences, heads, n, dims = out.shape
        members, width = len(self.group.ranks), heads * dims
        sent = partial_shape(sequences * n, heads, dims)
        partial = self.partial[: (1 + members) * prod(sent)].view(1 + members, sequences, n, *sent[1:])
        partial[0, ..., :dims].copy_(out.transpose(1, 2))
        partial[0, ..., dims].copy_(weight.transpose(1, 2))
        gathered = self.group.all_gather(partial[0], partial[1:])  # [P, B, n, h, D + 1]
        high = gathered[..., dims:].amax(0)
        weights = (gathered[..., dims:] - high).exp_()  # [P, B, n, h, 1]
        total = weights.sum(0)
        merged = gathered[..., :dims].mul_(weights).sum(0).div_(total)
        if scores.sinks is not None:
            whole = high.add_(total.log_()).squeeze(-1).transpose(1, 2)  # [B, h, n]
            merged.mul_(scores.beside_sinks(whole).transpose(1, 2).unsqueeze(-1))
        columns = slice(*part_range(width, self.share))
        return merged.view(sequences * n, width)[:, columns].to(q.dtype)

    def by_mask(self, qkv: Tensor, query_heads: int, cache: Tensor, first: int, mask: Mask, scores: Scores) -> Tensor:
        """Attend on a GPU; the result has the member's columns of o."""
        (rows, _, dims), members = qkv.shape, len(self.group.ranks)
        sent = partial_shape(rows, query_heads, dims)
        partial = self.partial[: (1 + members) * prod(sent)].view(1 + members, *sent)
        scale = dims**-0.5 if scores.scale is None else scores.scale
        ops.attend_to_part(qkv, cache, first, mask, partial[0], scale, scores.softcap)
        gathered = self.group.all_gather(partial[0], partial[1:])  # [P, W, h, D + 1]
        start, stop = part_range(query_heads * dims, self.share)
        out = qkv.new_empty(rows, stop - start)
        ops.merge_parts(gathered, out, (start, stop), scores.sinks)
        return out


def _rows(out: Tensor) -> Tensor:
    """Reorder [B, h, n, D] to [W, h * D]."""
    sequences, heads, n, dims = out.shape
    return out.transpose(1, 2).reshape(sequences * n, heads * dims)
